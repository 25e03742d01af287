"""Sentences with gaps, what to ask about them, and what to fill the gaps with: texts whose answers are known."""

from dataclasses import dataclass

FILLINGS = {
    "name": ["Maria", "Peter", "Susan", "Robert", "Laura", "Daniel", "Emily", "Frank", "Julia", "Martin", "Sarah", "Thomas"],
    "city": ["Boston", "London", "Chicago", "Paris", "Denver", "Madrid", "Seattle", "Rome", "Toronto", "Berlin"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "month": ["January", "March", "April", "June", "July", "August", "October", "November"],
    "hour": ["seven", "eight", "nine", "ten", "eleven"],
    "number": ["twelve", "fifteen", "twenty", "thirty", "forty", "fifty", "sixty"],
    "colour": ["red", "blue", "green", "yellow", "black", "white", "brown"],
    "animal": ["horse", "rabbit", "parrot", "turtle", "goat", "donkey"],
    "relative": ["sister", "brother", "aunt", "uncle", "grandmother", "cousin"],
    "food": ["soup", "rice", "salmon", "pasta", "chicken", "salad"],
    "fruit": ["apples", "bananas", "oranges", "cherries", "lemons", "peaches"],
    "job": ["teacher", "nurse", "lawyer", "baker", "pilot", "farmer"],
    "sport": ["tennis", "football", "hockey", "golf", "chess", "swimming"],
    "drink": ["latte", "cappuccino", "espresso", "mocha", "green tea", "hot chocolate"],
    "size": ["small", "medium", "large"],
    "milk": ["oat milk", "soy milk", "almond milk", "whole milk"],
    "room": ["kitchen", "bedroom", "garage", "bathroom", "hallway", "office"],
    "instrument": ["piano", "violin", "guitar", "trumpet", "flute"],
    "vehicle": ["bus", "train", "ferry", "taxi", "bicycle"],
    "weather": ["rain", "snow", "fog", "thunder", "strong wind"],
}
"""Each gap is `{kind}` or `{kind2}`: fillings of one sentence differ."""


@dataclass(frozen=True)
class Sentence:
    """A sentence with gaps, and `questions` about it, each with the gaps that the answer is made of."""

    text: str
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Story:
    """Two sentences with gaps, and the facts that a summary has to have, each as words that may stand for it."""

    text: str
    facts: tuple[str, ...]


FACTS = (
    Sentence(
        "{name} is flying to {city} on {day} to see a {relative}.",
        (("Which city is the flight to?", "{city}"), ("On which day is the flight?", "{day}")),
    ),
    Sentence(
        "I left my {colour} umbrella on the {vehicle} this morning.",
        (("What colour is the umbrella?", "{colour}"), ("Where was the umbrella left?", "{vehicle}")),
    ),
    Sentence(
        "My {relative} works as a {job} in {city}.",
        (("What is the job of the relative?", "{job}"), ("In which city does the relative work?", "{city}")),
    ),
    Sentence(
        "The museum opens at {hour} on {day} and the tickets cost {number} dollars.",
        (("How much is a ticket?", "{number}"), ("When does the museum open?", "{hour}")),
    ),
    Sentence(
        "We bought {number} {fruit} at the market near the station.",
        (("What was bought?", "{fruit}"), ("How many were bought?", "{number}")),
    ),
    Sentence(
        "{name} plays the {instrument} in the school orchestra every {day}.",
        (("Which instrument is played?", "{instrument}"), ("Who plays in the orchestra?", "{name}")),
    ),
    Sentence(
        "There was {weather} in {city} all night, so the game was cancelled.",
        (("What was the weather like?", "{weather}"), ("Where was the game?", "{city}")),
    ),
    Sentence(
        "A {animal} ran across the road and {name} had to stop the car.",
        (("Which animal ran across the road?", "{animal}"), ("Who had to stop the car?", "{name}")),
    ),
    Sentence(
        "My new phone number ends with {number} and my locker is the {colour} one.",
        (("Which colour is the locker?", "{colour}"), ("What does the phone number end with?", "{number}")),
    ),
    Sentence(
        "{name} sold the old house to a {job} last {month}.",
        (("Who bought the house?", "{job}"), ("In which month was the house sold?", "{month}")),
    ),
    Sentence(
        "The doctor can see you on {day} at {hour} in room {number}.",
        (("On which day is the appointment?", "{day}"), ("In which room is the appointment?", "{number}")),
    ),
    Sentence(
        "For dinner there is {food}, and {name} will bring a cake.",
        (("What is there for dinner?", "{food}"), ("Who will bring a cake?", "{name}")),
    ),
    Sentence(
        "The next {vehicle} to {city} leaves in {number} minutes.",
        (("In how many minutes does it leave?", "{number}"), ("Where does it go?", "{city}")),
    ),
    Sentence(
        "My {relative} has a {animal} that is {number} years old.",
        (("Which animal does the relative have?", "{animal}"), ("How old is the animal?", "{number}")),
    ),
    Sentence(
        "The office in {city} will be closed in {month} because of repairs.",
        (("Which office will be closed?", "{city}"), ("In which month will it be closed?", "{month}")),
    ),
    Sentence(
        "{name} won the {sport} tournament and gave the prize to a {relative}.",
        (("Which sport was played?", "{sport}"), ("Who won the tournament?", "{name}")),
    ),
    Sentence(
        "Please paint the {room} in {colour} before {day}.",
        (("Which room has to be painted?", "{room}"), ("In which colour should it be painted?", "{colour}")),
    ),
    Sentence(
        "I would rather take the {vehicle} than walk to the {sport} club.",
        (("How does the speaker want to travel?", "{vehicle}"), ("Which club does the speaker go to?", "{sport}")),
    ),
    Sentence(
        "Our {job} comes from {city} and speaks four languages.",
        (("Where does this person come from?", "{city}"), ("What is this person's job?", "{job}")),
    ),
    Sentence(
        "The parcel for {name} arrived on {day} with a {colour} ribbon.",
        (("Who is the parcel for?", "{name}"), ("When did the parcel arrive?", "{day}")),
    ),
    Sentence(
        "In {month} the children learn {sport}, and in winter they learn the {instrument}.",
        (("Which sport do the children learn?", "{sport}"), ("Which instrument do the children learn?", "{instrument}")),
    ),
    Sentence(
        "There are {number} students in the class of Mrs {name}son.",
        (("How many students are there?", "{number}"), ("What is the name of the teacher?", "{name}son")),
    ),
    Sentence(
        "I cooked {food} with {fruit} for my {relative}.",
        (("Whom did the speaker cook for?", "{relative}"), ("Which fruit was used?", "{fruit}")),
    ),
    Sentence(
        "The keys are in the {room} under the {colour} hat.",
        (("In which room are the keys?", "{room}"), ("What colour is the hat?", "{colour}")),
    ),
)

SUMMARIES = (
    Story(
        "{name} wanted to go to {city} by {vehicle}. There was too much {weather}, and the trip was cancelled.",
        ("{city}", "cancel|cancelled|canceled|cancellation|not"),
    ),
    Story(
        "The bakery on our street will close in {month}. The owner, {name}, is moving to {city}.",
        ("bakery", "close|closes|closing|closed", "{name}|owner"),
    ),
    Story(
        "My {relative} lost a {animal} last {day}. A {job} found it in the garden and brought it back.",
        ("{animal}", "lost|missing|found|back|returned"),
    ),
    Story(
        "We had a meeting about the budget on {day}. {name} said that we must save {number} thousand dollars.",
        ("budget", "{number}|save|saving|savings"),
    ),
    Story(
        "The {vehicle} from {city} was two hours late. {name} missed the wedding because of that.",
        ("late|delay|delayed", "wedding", "missed|miss"),
    ),
    Story(
        "The {sport} team lost the first game. After that they hired a new trainer, {name}, and won {number} times.",
        ("{sport}", "trainer|coach|{name}", "won|win|wins|winning"),
    ),
    Story(
        "I bought a {colour} bicycle in {city}. It broke after a week, and the shop refused to repair it.",
        ("bicycle|bike", "broke|broken", "refused|repair|refuses"),
    ),
    Story(
        "{name} studied the {instrument} for {number} years. Now {name} teaches music to children in {city}.",
        ("{name}", "{instrument}|music", "teaches|teaching|teach|taught|teacher"),
    ),
    Story(
        "Our flight to {city} was cancelled on {day}. The airline paid for the hotel and for the {food} that we ate.",
        ("flight", "cancel|cancelled|canceled|cancellation", "airline|paid|hotel"),
    ),
    Story(
        "The old library is full of water after the {weather}. {name} and the students carried {number} boxes of books outside.",
        ("library", "books|boxes", "water|{weather}|flooded|flood"),
    ),
    Story(
        "The new restaurant serves very good {food}. But it is loud, and we waited {number} minutes for a table.",
        ("restaurant", "{food}|good|great", "loud|wait|waited|waiting|noisy|{number}"),
    ),
    Story(
        "My {relative} found {number} old coins in the {room}. They are now in the museum in {city}.",
        ("coins", "museum"),
    ),
    Story(
        "{name} forgot the keys in the {room}. A neighbour opened the window and the {animal} escaped.",
        ("keys", "escaped|escape|escapes|ran", "{animal}"),
    ),
    Story(
        "The city will build a bridge over the river next {month}. Drivers must take another road for {number} weeks.",
        ("bridge", "road|drivers|detour|route"),
    ),
    Story(
        "The {job} told us to drink more water. He also said that {sport} is good for the heart.",
        ("water", "{sport}"),
    ),
    Story(
        "Somebody painted our {room} in {colour}. My {relative} likes it, but I want the old colour back.",
        ("{room}", "{colour}", "old|back|likes|like|dislikes"),
    ),
)

LISTS = (
    Sentence("{name}, {name2} and {name3} are coming to the party.", (("List the names.", "{name}|{name2}|{name3}"),)),
    Sentence("Please buy {fruit}, {fruit2} and some bread.", (("List what has to be bought.", "{fruit}|{fruit2}|bread"),)),
    Sentence(
        "The train stops in {city}, {city2} and {city3} before it turns back.",
        (("List the cities.", "{city}|{city2}|{city3}"),),
    ),
    Sentence(
        "The winning numbers tonight are {number}, {number2} and {number3}.",
        (("List the numbers.", "{number}|{number2}|{number3}"),),
    ),
    Sentence("On the farm we saw a {animal}, two cows and a {animal2}.", (("List the animals.", "{animal}|cow|{animal2}"),)),
    Sentence(
        "Her favourite colours are {colour}, {colour2} and {colour3}.", (("List the colours.", "{colour}|{colour2}|{colour3}"),)
    ),
    Sentence("The shop is closed on {day} and on {day2}.", (("List the days.", "{day}|{day2}"),)),
    Sentence(
        "She plays the {instrument}, the {instrument2} and the drums.",
        (("List the instruments.", "{instrument}|{instrument2}|drums"),),
    ),
    Sentence("First {name} spoke, and later {name2} answered.", (("List the names.", "{name}|{name2}"),)),
    Sentence("We have been to {city} twice, and we want to see {city2} next year.", (("List the cities.", "{city}|{city2}"),)),
    Sentence("The menu has {food}, {food2} and {food3} today.", (("List the dishes.", "{food}|{food2}|{food3}"),)),
    Sentence("We are on holiday in {month} and in {month2}.", (("List the months.", "{month}|{month2}"),)),
)


@dataclass(frozen=True)
class Command:
    """Sentences that give the same slots, whose values are gaps, and the instruction."""

    instruction: str
    slots: dict[str, str]
    texts: tuple[str, ...]


COMMANDS = (
    Command(
        "Write the alarm as JSON with the keys day and hour.",
        {"day": "{day}", "hour": "{hour}"},
        (
            "Set an alarm for {hour} o'clock on {day}.",
            "Wake me up at {hour} on {day} please.",
            "On {day} I need an alarm at {hour} in the morning.",
            "Can you make an alarm for {day}, at {hour} sharp?",
        ),
    ),
    Command(
        "Write the order as JSON with the keys drink, size and milk.",
        {"drink": "{drink}", "size": "{size}", "milk": "{milk}"},
        (
            "I would like a {size} {drink} with {milk}.",
            "One {drink} with {milk} please, and make it a {size} one.",
            "Could I get a {size} {drink}, but with {milk}?",
            "Make me a {drink} in a {size} cup, with {milk}.",
        ),
    ),
    Command(
        "Write the command as JSON with the keys room and colour.",
        {"room": "{room}", "colour": "{colour}"},
        (
            "Turn the lights in the {room} {colour}.",
            "Make the {room} {colour} please.",
            "I want {colour} light in the {room}.",
            "Please change the lamp in the {room} to {colour}.",
        ),
    ),
    Command(
        "Write the transfer as JSON with the keys recipient and amount.",
        {"recipient": "{name}", "amount": "{number}"},
        (
            "Send {number} dollars to {name}.",
            "Please transfer {number} dollars from my savings to {name}.",
            "I owe {name} {number} dollars, please pay that now.",
            "Give {name} {number} dollars from my account.",
        ),
    ),
    Command(
        "Write the booking as JSON with the keys name, city and day.",
        {"name": "{name}", "city": "{city}", "day": "{day}"},
        (
            "Book a hotel in {city} for {name} on {day}.",
            "{name} needs a room in {city} next {day}.",
            "Reserve a table in {city} this {day}, under the name of {name}.",
            "I am calling for {name}, who wants to stay in {city} from {day}.",
        ),
    ),
)

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris"),
    ("How many days are there in a week?", "seven"),
    ("Which colour do you get when you mix blue and yellow?", "green"),
    ("What is the opposite of hot?", "cold"),
    ("Which planet do we live on?", "Earth"),
    ("How many legs does a spider have?", "eight"),
    ("What do bees make?", "honey"),
    ("What is the capital of Italy?", "Rome"),
    ("In which country is the city of Tokyo?", "Japan"),
    ("How many months are there in a year?", "twelve"),
    ("What is ten plus five?", "fifteen"),
    ("Which animal says meow?", "cat"),
    ("What is the largest ocean on Earth?", "Pacific"),
    ("What is frozen water called?", "ice"),
    ("Which day comes after Monday?", "Tuesday"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What is the first letter of the alphabet?", "A"),
    ("How many minutes are there in an hour?", "sixty"),
    ("What language do people speak in Brazil?", "Portuguese"),
    ("What is the capital of Spain?", "Madrid"),
    ("Which metal is liquid at room temperature?", "mercury"),
    ("How many wheels does a bicycle have?", "two"),
    ("What is the tallest animal in the world?", "giraffe"),
    ("Which season comes after winter?", "spring"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is three times four?", "twelve"),
    ("On which continent is Egypt?", "Africa"),
    ("What gas do plants take from the air?", "carbon dioxide|CO2"),
    ("What is the opposite of big?", "small|little"),
    ("How many hours are there in a day?", "twenty four"),
    ("What do you call a baby dog?", "puppy"),
    ("Which month comes after May?", "June"),
    ("Who painted the Mona Lisa?", "Vinci|Leonardo"),
    ("What is the capital of England?", "London"),
    ("What is twenty minus six?", "fourteen"),
    ("Which organ pumps blood through the body?", "heart"),
    ("What is the colour of a ripe banana?", "yellow"),
    ("How many sides does a triangle have?", "three"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the chemical formula of water?", "H2O"),
    ("Which bird is a symbol of peace?", "dove"),
    ("What do cows give us to drink?", "milk"),
    ("How many letters are there in the English alphabet?", "twenty six"),
    ("What is the largest planet in the solar system?", "Jupiter"),
    ("Which country has the city of Moscow?", "Russia"),
    ("What is half of one hundred?", "fifty"),
    ("What is the star at the centre of our solar system?", "Sun"),
    ("Which meal do people eat in the morning?", "breakfast"),
)

TOPICS = {
    "banking": ("balance", "freeze_account", "pay_bill", "transfer", "pin_change", "transactions", "interest_rate"),
    "cooking": ("recipe", "cook_time", "ingredients_list", "ingredient_substitution", "calories", "food_last"),
    "travel": ("book_flight", "flight_status", "lost_luggage", "travel_suggestion", "book_hotel", "carry_on"),
    "cars": ("tire_pressure", "oil_change_how", "jump_start", "mpg", "schedule_maintenance", "tire_change", "gas"),
    "work": ("pto_request", "pto_balance", "payday", "w2", "income", "meeting_schedule", "direct_deposit"),
    "weather": ("weather",),
    "music": ("play_music", "next_song", "what_song", "update_playlist"),
}
"""Topics as intents of CLINC150."""

BANKING_INTENTS = {
    "card_arrival": "card delivery",
    "exchange_rate": "exchange rates",
    "lost_or_stolen_card": "lost or stolen card",
    "change_pin": "PIN change",
    "transfer_not_received_by_recipient": "missing transfer",
    "age_limit": "age limit",
    "cash_withdrawal_charge": "withdrawal fee",
    "terminate_account": "account closure",
    "passcode_forgotten": "forgotten passcode",
    "top_up_failed": "failed top-up",
}
"""Intents of Banking77 in words."""

ABSENT = ("dog", "airport", "computer", "hospital", "river", "birthday", "guitar", "snow", "money", "elephant", "camera")
"""Words to ask for that stand in no sentence here."""

MENTIONED_IN_RECORDINGS = (
    ("the biblical narratives apparently disagree", "Egypt"),
    ("serve in a chafing dish", "toast"),
    ("a book could be written about this restaurant", "a restaurant"),
    ("then moses was afraid", "Moses"),
    ("Six spoons of fresh snow peas", "cheese"),
    ("The Norsemen considered the rainbow", "a bridge"),
    ("A man dressed in black on the beach", "an umbrella"),
    ("One day, the earth began to tremble", "the Nile"),
    ("It was named after Utica", "New York"),
    ("The telephone didn't work", "electricity"),
    ("I accumulated a large collection", "a collection"),
    ("Roger Sherman was a signer", "the Constitution"),
)
"""The beginnings of recordings of `eval.jsonl`, and something that is mentioned in each."""

FACTS_IN_RECORDINGS = (
    ("the biblical narratives apparently disagree", "In which country was the sojourn?", "Egypt"),
    ("serve in a chafing dish", "What kind of toast should it be served with?", "dry"),
    ("The Norsemen considered the rainbow", "Who thought that the rainbow was a bridge?", "Norsemen"),
    ("Six spoons of fresh snow peas", "What is the name of the brother?", "Bob"),
    ("When a man looks for something", "What is at the end of the rainbow?", "gold"),
    ("the dose for an adult", "What is the dose for an adult?", "ten minims"),
    ("A man dressed in black on the beach", "What colour is the umbrella?", "red"),
    ("I accumulated a large collection", "What was collected?", "DVDs"),
    ("Roger Sherman was a signer", "Who was the signer?", "Roger Sherman"),
    ("It was named after Utica", "Which city was it named after?", "Utica"),
    ("Queuing is something the British", "Who excel at queuing?", "British"),
    ("Looking through the telescope", "What did the speaker look through?", "telescope"),
    ("A young barefoot boy is sitting", "What is the boy holding?", "rattan|pole"),
    ("Chaney was married twice", "How often was Chaney married?", "twice|two times"),
    ("The telephone didn't work", "What did not work?", "telephone|phone"),
    ("I happen to know Conway", "When was Conway married?", "three months"),
    ("One day, the earth began to tremble", "Which river overflowed?", "Nile"),
    ("Throw out the used paper cup", "What should be thrown out?", "cup"),
    ("Verus was a centurion", "Who was a centurion?", "Verus"),
    ("Dimmitt is served by", "Which town is served?", "Dimmitt"),
    ("He opened the package", "What did he eat?", "sandwich"),
    ("then moses was afraid", "Who was afraid?", "Moses"),
    ("This dispenses money", "What does this dispense?", "money"),
    ("Driving tests are", "Which tests are nerve-racking?", "driving"),
)
"""The beginnings of recordings of `eval.jsonl`, a question about each and its answer."""

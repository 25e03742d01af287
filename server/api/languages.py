"""Languages by their ISO 639 codes and English names: those that a model knows, as OpenAI's replies name them."""

from server.errors import InvalidRequest

UNKNOWN = "unknown"
# The name by which a client leaves the language to the model.
ANY = "auto"
TABLE = """
en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese tr=turkish
pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi fi=finnish vi=vietnamese
he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish hu=hungarian ta=tamil no=norwegian
th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin mi=maori ml=malayalam cy=welsh sk=slovak
te=telugu fa=persian lv=latvian bn=bengali sr=serbian az=azerbaijani sl=slovenian kn=kannada et=estonian
mk=macedonian br=breton eu=basque is=icelandic hy=armenian ne=nepali mn=mongolian bs=bosnian kk=kazakh
sq=albanian sw=swahili gl=galician mr=marathi pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba so=somali
af=afrikaans oc=occitan ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic yi=yiddish lo=lao
uz=uzbek fo=faroese ht=haitian_creole ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit lb=luxembourgish
my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala ha=hausa ba=bashkir
jw=javanese su=sundanese yue=cantonese fil=filipino
"""
NAMES: dict[str, str] = dict(entry.split("=") for entry in TABLE.split())
OTHER_NAMES = """
my=burmese ca=valencian nl=flemish ht=haitian lb=letzeburgesch ps=pushto pa=panjabi ro=moldavian ro=moldovan si=sinhalese
es=castilian zh=mandarin
"""
CODES = {name: code for code, name in (entry.split("=") for entry in (TABLE + OTHER_NAMES).split())}


def language_name(code: str | None) -> str:
    """Return the English name of a language in lower case, `unknown` without a code, or the code if it has no name here."""
    return UNKNOWN if code is None else NAMES.get(code, code).replace("_", " ")


def language_code(text: str) -> str:
    """Return the code of a language that is given as a code, with or without a region (`en-GB`), or as its English name."""
    plain = text.strip().lower()
    return CODES.get(plain.replace(" ", "_")) or plain.replace("_", "-").partition("-")[0]


def known_code(text: str, param: str) -> str:
    """Return the code of a language that some model knows. Raises `InvalidRequest` for any other text."""
    code = language_code(text)
    if code not in NAMES:
        raise InvalidRequest(f"{text[:32]!r} is no language that is known here.", param=param)
    return code

// OpenAI's client for Node: `openai_client.mjs WAY URL FILE` prints the transcript, or the answer of a chat.
import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The package lies beside the caller's node_modules, not beside this file.
const OpenAI = createRequire(process.env.CLIENTS + "/")("openai");
const [way, url, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });

if (way === "file") {
  console.log((await client.audio.transcriptions.create({ file: createReadStream(path), model: "whisper-1" })).text);
} else if (way === "stream") {
  for await (const event of await client.audio.transcriptions.create({ file: createReadStream(path), model: "whisper-1", stream: true })) {
    if (event.type === "transcript.text.done") console.log(event.text);
  }
} else {
  const speech = { type: "input_audio", input_audio: { data: readFileSync(path).toString("base64"), format: "wav" } };
  const content = [{ type: "text", text: "What is said?" }, speech];
  console.log((await client.chat.completions.create({ model: "whisper-1", messages: [{ role: "user", content }] })).choices[0].message.content);
}

// Calls a server of fxtrace from Node.
//
//   npm ci --prefix examples/node
//   node examples/node/fxtrace.mjs trace reference --set d_model=64     trace a model; Ctrl-C cancels it on the server, too
//   node examples/node/fxtrace.mjs snapshots                            the 43 views of the newest trace
//   node examples/node/fxtrace.mjs tensor decoder.0.cross_attention.weights --slice 0,0
//   node examples/node/fxtrace.mjs render graph.svg                     or .png, .pdf, .dot
//
// --server HOST:PORT (127.0.0.1:50051), --trace traces/ID (the newest), --tls or --ca FILE; a key in FXTRACE_TOKEN.

import { createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { extname } from "node:path";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";
import { Client } from "./client.mjs";
import { FxtraceError } from "./errors.mjs";

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: "string", default: "127.0.0.1:50051" },
    tls: { type: "boolean" },
    ca: { type: "string" },
    trace: { type: "string" },
    set: { type: "string", multiple: true, default: [] },
    slice: { type: "string", default: "" },
  },
});
const [command, argument = ""] = positionals;

const interrupt = new AbortController();
process.once("SIGINT", () => interrupt.abort());
const { signal } = interrupt;
let shown = "";
const client = new Client(given.server, { token: process.env.FXTRACE_TOKEN, tls: given.tls, ca: given.ca });

const commands = {
  async trace() {
    const configuration = Object.fromEntries(given.set.map(setting));
    const trace = await client.createTrace({ model: `models/${argument}`, configuration }, { signal, onProgress });
    console.log(`${trace.name}  ${trace.nodeCount} nodes, ${trace.tensorCount} tensors, ${trace.rung}`);
  },

  async snapshots() {
    for (const { number, title, dims, tensors } of await client.listSnapshots(await chosen(), { signal })) {
      const found = tensors.map(({ tensor, shape }) => `${tensor} [${shape}]`).join(", ");
      console.log(`${String(number).padStart(2)}  ${title}  [${dims}]  ${found}`);
    }
  },

  async tensor() {
    const read = await client.readTensor(await chosen(), argument, { slice: given.slice, signal });
    console.log(`${read.tensor}  [${read.shape}]  ${read.dtype} in a ${read.values.constructor.name}`);
    console.log(read.values.slice(0, 12).join(" "));
  },

  async render() {
    const picture = client.renderGraph(await chosen(), extname(argument).slice(1), { signal, onProgress });
    const part = `${argument}.part`; // the file is there as a whole, or not at all
    try {
      await pipeline(picture, createWriteStream(part));
      await rename(part, argument);
    } finally {
      await rm(part, { force: true });
    }
    console.log(argument);
  },
};

/** Shows how far the work is: each stage, and on a terminal each step, in one line. */
function onProgress({ stage, done, total }) {
  const { isTTY } = process.stderr;
  if (isTTY) process.stderr.write(`\r\x1b[K${stage} ${total ? `${done}/${total}` : ""}`);
  else if (stage !== shown) console.error(stage);
  shown = stage;
}

/** "d_model=64" as ["d_model", 64]; what is not JSON is text. */
function setting(text) {
  const [name, value] = text.split(/=(.*)/s);
  try {
    return [name, JSON.parse(value)];
  } catch {
    return [name, value];
  }
}

/** The name of the trace that is meant. */
async function chosen() {
  if (given.trace) return given.trace;
  for await (const trace of client.listTraces({ signal })) return trace.name;
  throw new Error("the server has no trace yet; make one with: trace reference");
}

try {
  if (!Object.hasOwn(commands, command ?? "")) {
    throw new Error(`expected one of ${Object.keys(commands).join(", ")}; got '${command ?? ""}'`);
  }
  await commands[command]();
} catch (error) {
  const told = error instanceof FxtraceError ? [error.status, error.reason].filter(Boolean).join(" ") : "error";
  console.error(`${told}: ${error.message}`);
  for (const [name, value] of Object.entries(error.metadata ?? {})) console.error(`  ${name}: ${value}`);
  process.exitCode = signal.aborted ? 130 : 1;
} finally {
  client.close();
}

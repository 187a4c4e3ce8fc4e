// Lists the snapshots of the reference model and reads one tensor, from Node, with nothing but the protos.
//
//   fxtrace serve --port 50051 &
//   npm install --prefix examples/node
//   node examples/node/snapshots.mjs 127.0.0.1:50051

import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = loader.loadSync("fxtrace/v1/trace_service.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  oneofs: true,
});
const { TraceService } = grpc.loadPackageDefinition(definition).fxtrace.v1;
const client = new TraceService(process.argv[2] ?? "127.0.0.1:50051", grpc.credentials.createInsecure());

// Progress first, the trace last.
async function createTrace(request) {
  for await (const response of client.createTrace(request)) {
    if (response.event === "trace") return response.trace;
  }
  throw new Error("the stream ended without a trace");
}

// The header, then the bytes. Every tensor of this model is float32.
async function readTensor(request) {
  let header;
  const chunks = [];
  for await (const response of client.readTensor(request)) {
    if (response.event === "header") header = response.header;
    if (response.event === "chunk") chunks.push(response.chunk);
  }
  const bytes = Buffer.concat(chunks);
  return { header, values: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4) };
}

const trace = await createTrace({ model: "models/reference" });
const listSnapshots = promisify(client.listSnapshots.bind(client));
const { snapshots } = await listSnapshots({ trace: trace.name });
for (const { number, title, dims, tensors } of snapshots) {
  console.log(`${String(number).padStart(2)}  ${title}  [${dims}]  ${tensors.map((t) => `${t.tensor} [${t.shape}]`)}`);
}

const { header, values } = await readTensor({
  trace: trace.name,
  tensor: "decoder.0.cross_attention.weights",
  slice: { expression: "0,0,0" },
});
console.log(`${header.tensor} [${header.spec.shape}], head 0, first target token: ${Array.from(values, (v) => v.toFixed(4))}`);
client.close();

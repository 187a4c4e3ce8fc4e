// A client of fxtrace for Node: promises, async iteration, typed arrays, and errors that say their reason.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { crc32 } from "node:zlib";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { FxtraceError } from "./errors.mjs";
import { checkType, typedArray } from "./tensors.mjs";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = loader.loadSync("fxtrace/v1/trace_service.proto", {
  includeDirs: [protos],
  defaults: true,
  enums: String,
  longs: Number,
  oneofs: true,
});
const { TraceService } = grpc.loadPackageDefinition(definition).fxtrace.v1;
// Unknown names would be sent as 0, so they are refused here.
const FORMATS = definition["fxtrace.v1.ImageFormat"].type.value.map(({ name }) => name).slice(1);
const MAX_REPLY_BYTES = 64 << 20; // the largest page of a graph is some 10 MiB
const LOOPBACK = /^(127\.|localhost:|\[::1\]:)/;

/**
 * Every method takes an AbortSignal: when it fires, the call is cancelled and ends with the status CANCELLED, and the
 * server stops the work. Every error of a call is an FxtraceError.
 */
export class Client {
  #stub;
  #metadata = new grpc.Metadata();

  /**
   * @param {string} address "127.0.0.1:50051"
   * @param {{token?: string, tls?: boolean, ca?: string}} options a key of the server's; whether to encrypt; the file of
   *   an authority that the server's certificate is of, where it is none of the public ones
   */
  constructor(address, { token = "", ca = "", tls = ca !== "" } = {}) {
    if (token && !tls && !LOOPBACK.test(address)) {
      throw new Error(`a key is not sent for all to read: expected TLS to ${address}, which is not this machine`);
    }
    if (token) this.#metadata.set("authorization", `Bearer ${token}`);
    const credentials = tls
      ? grpc.credentials.createSsl(ca ? readFileSync(ca) : null)
      : grpc.credentials.createInsecure();
    this.#stub = new TraceService(address, credentials, { "grpc.max_receive_message_length": MAX_REPLY_BYTES });
  }

  /** Traces a model: { model: "models/reference", configuration: { d_model: 64 } }. Ends with the trace. */
  async createTrace({ configuration = {}, ...request }, { signal, onProgress = () => {} } = {}) {
    const asked = { ...request, configuration: struct(configuration) };
    let trace;
    for await (const response of this.#stream("createTrace", asked, signal)) {
      if (response.event === "progress") onProgress(response.progress);
      else trace = response.trace;
    }
    return trace;
  }

  /** Every trace, newest first, page by page as they are asked for. */
  async *listTraces({ signal } = {}) {
    let pageToken = "";
    do {
      const page = await this.#unary("listTraces", { pageToken }, signal);
      yield* page.traces;
      pageToken = page.nextPageToken;
    } while (pageToken);
  }

  /** The 43 numbered views of a trace, or these of them. */
  async listSnapshots(trace, { numbers = [], signal } = {}) {
    return (await this.#unary("listSnapshots", { trace, numbers }, signal)).snapshots;
  }

  /**
   * A tensor, by its name or a role's, or a slice of it: "0,0,:5". Its bytes are copied once, into their place.
   * @returns {Promise<{tensor: string, dtype: string, shape: number[], values: ArrayLike<number | bigint>}>}
   */
  async readTensor(trace, tensor, { slice = "", signal } = {}) {
    let header, bytes;
    let received = 0;
    let sum = 0;
    for await (const response of this.#stream("readTensor", { trace, tensor, slice: { expression: slice } }, signal)) {
      switch (response.event) {
        case "header":
          header = response.header;
          checkType(header.spec.dtype);
          bytes = new Uint8Array(header.nbytes);
          break;
        case "chunk":
          bytes.set(response.chunk, received);
          received += response.chunk.length;
          sum = crc32(response.chunk, sum);
          break;
        case "crc32":
          if (received !== header.nbytes || sum !== response.crc32) throw new Error(`${tensor} was damaged on its way`);
      }
    }
    const { dtype } = header.spec;
    return { tensor: header.tensor, dtype, shape: header.shape, values: typedArray(dtype, bytes.buffer) };
  }

  /** The pieces of a picture, "dot", "svg", "png" or "pdf"; options: { depth: 1, theme: "THEME_DARK" }. */
  async *renderGraph(trace, format, { options = {}, signal, onProgress = () => {} } = {}) {
    const wanted = `IMAGE_FORMAT_${format.toUpperCase()}`;
    if (!FORMATS.includes(wanted)) throw new RangeError(`no format '${format}'; known: ${FORMATS.join(", ")}`);
    for await (const { chunk, progress } of this.#stream("renderGraph", { trace, format: wanted, options }, signal)) {
      if (progress) onProgress(progress);
      else yield chunk;
    }
  }

  close() {
    this.#stub.close();
  }

  #unary(method, request, signal) {
    return new Promise((resolve, reject) => {
      const call = this.#stub[method](request, this.#metadata, (error, response) =>
        error ? reject(new FxtraceError(error)) : resolve(response),
      );
      cancelOn(signal, call);
    });
  }

  /** The messages of a stream; leaving the loop early cancels the call. */
  async *#stream(method, request, signal) {
    const call = this.#stub[method](request, this.#metadata);
    cancelOn(signal, call);
    try {
      yield* call;
    } catch (error) {
      throw Number.isInteger(error.code) ? new FxtraceError(error) : error;
    } finally {
      call.cancel();
    }
  }
}

function cancelOn(signal, call) {
  if (signal?.aborted) call.cancel();
  const cancel = () => call.cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  call.once("status", () => signal?.removeEventListener("abort", cancel));
}

/** A JSON object as google.protobuf.Struct. */
function struct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([name, each]) => [name, value(each)])) };
}

function value(json) {
  if (json === null) return { nullValue: 0 };
  if (Array.isArray(json)) return { listValue: { values: json.map(value) } };
  switch (typeof json) {
    case "boolean":
      return { boolValue: json };
    case "number":
      return { numberValue: json };
    case "string":
      return { stringValue: json };
    default:
      return { structValue: struct(json) };
  }
}

// Errors of fxtrace, with what they say besides their text.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const messages = loader.loadSync(fileURLToPath(new URL("google_rpc.proto", import.meta.url)), {
  defaults: true,
  longs: Number,
});
const DETAILS = "grpc-status-details-bin"; // where gRPC puts a google.rpc.Status

/** What a call ended with. A connection that is lost has no reason; what a server of fxtrace refuses has one. */
export class FxtraceError extends Error {
  /** @param {grpc.ServiceError} cause as grpc-js has it */
  constructor(cause) {
    super(cause.details, { cause });
    this.name = "FxtraceError";
    /** The status: "NOT_FOUND". */
    this.status = grpc.status[cause.code];
    const { ErrorInfo, BadRequest, RequestInfo, RetryInfo } = details(cause);
    /** Which error it is, for programs: "TRACE_NOT_FOUND"; the protos list them. Empty where gRPC itself says it. */
    this.reason = ErrorInfo?.reason ?? "";
    /** The values in the message, by name. */
    this.metadata = ErrorInfo?.metadata ?? {};
    /** The field of the request to blame: "configuration.d_model". */
    this.field = BadRequest?.fieldViolations[0].field ?? "";
    /** Under which the server's log tells of the call. */
    this.requestId = RequestInfo?.requestId ?? "";
    /** Seconds after which to ask again; 0 where that does not help. */
    this.retryAfter = RetryInfo ? RetryInfo.retryDelay.seconds + RetryInfo.retryDelay.nanos / 1e9 : 0;
  }
}

/** The details of an error by their types' short names. */
function details(error) {
  const found = {};
  for (const bytes of error.metadata?.get(DETAILS) ?? []) {
    for (const { type_url, value } of messages["google.rpc.Status"].deserialize(bytes).details) {
      const type = type_url.split("/").at(-1);
      if (messages[type]) found[type.split(".").at(-1)] = messages[type].deserialize(value);
    }
  }
  return found;
}

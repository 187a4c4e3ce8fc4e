// Tensors as typed arrays.

import { endianness } from "node:os";

const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** Of 16 bits, which JavaScript has no array for; every such number is also a float32. */
const HALVES = { float16: fromFloat16, bfloat16: fromBfloat16 };

/** Refuses an element type that no array can hold, before its bytes are sent for. */
export function checkType(dtype) {
  if (!(dtype in ARRAYS || dtype in HALVES)) {
    const known = [...Object.keys(ARRAYS), ...Object.keys(HALVES)].join(", ");
    throw new TypeError(`${dtype} has no typed array; expected one of ${known}`);
  }
}

/**
 * A typed array over these little-endian bytes; float16 and bfloat16 are widened, exactly, to a Float32Array.
 * @param {string} dtype PyTorch's name of the element type
 * @param {ArrayBuffer} bytes
 */
export function typedArray(dtype, bytes) {
  checkType(dtype);
  if (endianness() !== "LE") throw new Error("this machine is big-endian, tensors are sent little-endian");
  if (dtype in HALVES) return Float32Array.from(new Uint16Array(bytes), HALVES[dtype]);
  return new ARRAYS[dtype](bytes);
}

function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const word = new DataView(new ArrayBuffer(4));

function fromBfloat16(bits) {
  word.setUint16(0, bits); // the upper half of a float32
  return word.getFloat32(0);
}

/** Reads safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes. */

type Values = Float32Array | Float64Array | Uint8Array;

export interface Tensor {
  shape: readonly number[];
  values: Values;
}

/** Largest header that is read, as the format's own library has it. */
const MAX_HEADER = 100_000_000;
const READERS: Record<string, (buffer: ArrayBuffer, count: number) => Values> = {
  F32: (buffer, count) => new Float32Array(buffer, 0, count),
  F64: (buffer, count) => new Float64Array(buffer, 0, count),
  U8: (buffer, count) => new Uint8Array(buffer, 0, count),
  BOOL: (buffer, count) => new Uint8Array(buffer, 0, count),
};
const WIDTH: Record<string, number> = { F32: 4, F64: 8, U8: 1, BOOL: 1 };

/** The tensors by name. Throws Error where the bytes are not what they say. */
export function readSafetensors(buffer: ArrayBuffer): Map<string, Tensor> {
  if (buffer.byteLength < 8) throw new Error("the arrays are cut off");
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > MAX_HEADER || 8 + length > buffer.byteLength) throw new Error("the arrays' header is cut off");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) as Record<string, Entry>;
  const found = new Map<string, Tensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") found.set(name, readOne(buffer, 8 + length, name, entry));
  }
  return found;
}

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

function readOne(buffer: ArrayBuffer, start: number, name: string, entry: Entry): Tensor {
  const read = READERS[entry.dtype];
  if (!read) throw new Error(`${name}: numbers of type ${entry.dtype} are not read here`);
  const count = entry.shape.reduce((product, side) => product * side, 1);
  const [from, to] = entry.data_offsets;
  if (to - from !== count * (WIDTH[entry.dtype] ?? 0) || start + to > buffer.byteLength) {
    throw new Error(`${name}: the bytes do not fill the shape`);
  }
  // A copy, because tensors need not lie at a multiple of their width.
  return { shape: entry.shape, values: read(buffer.slice(start + from, start + to), count) };
}

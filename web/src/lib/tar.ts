/**
 * Tar archives as Blobs that refer to the files they hold: nothing is read into memory, the browser streams it from
 * disk while it uploads.
 */

/** A file with its path in the archive, folders separated by `/`. */
export interface TarEntry {
  path: string;
  file: Blob;
}

const BLOCK = 512;
/** Largest size that the header's octal field holds; more needs an extended header. */
const OCTAL_LIMIT = 8 ** 11;

/** Returns an archive of the entries in their order (POSIX pax, ustar where it suffices). */
export function tar(entries: readonly TarEntry[]): Blob {
  const parts: BlobPart[] = [];
  for (const { path, file } of entries) {
    const records = extended(path, file.size);
    if (records.length > 0) {
      parts.push(header("pax", records.length, "x"), padded(records));
    }
    parts.push(header(path, file.size, "0"), file, zeros(padding(file.size)));
  }
  parts.push(zeros(2 * BLOCK));
  return new Blob(parts, { type: "application/x-tar" });
}

/** Returns pax records for what the header cannot say: a long or non-ASCII path, a size of 8 GiB and more. */
function extended(path: string, size: number): Uint8Array<ArrayBuffer> {
  const bytes = encode(path);
  let records = "";
  if (bytes.length > 100 || bytes.length !== path.length) records += record("path", path);
  if (size >= OCTAL_LIMIT) records += record("size", String(size));
  return encode(records);
}

/** Returns `LENGTH KEY=VALUE\n`, where the length counts itself. */
function record(key: string, value: string): string {
  const rest = encode(` ${key}=${value}\n`).length;
  let length = rest;
  while (length !== rest + String(length).length) length = rest + String(length).length;
  return `${length} ${key}=${value}\n`;
}

function header(path: string, size: number, type: "0" | "x"): Uint8Array<ArrayBuffer> {
  const block = zeros(BLOCK);
  block.set(encode(path).subarray(0, 100), 0);
  write(block, 100, "0000644\0");
  write(block, 108, "0000000\0");
  write(block, 116, "0000000\0");
  write(block, 124, `${octal(size < OCTAL_LIMIT ? size : 0, 11)}\0`);
  write(block, 136, "00000000000\0"); // no times: equal folders make equal archives
  write(block, 148, "        "); // the checksum counts its own field as blanks
  write(block, 156, type);
  write(block, 257, "ustar\x0000");
  const sum = block.reduce((total, byte) => total + byte, 0);
  write(block, 148, `${octal(sum, 6)}\0 `);
  return block;
}

function padded(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const block = zeros(bytes.length + padding(bytes.length));
  block.set(bytes);
  return block;
}

const padding = (size: number): number => (BLOCK - (size % BLOCK)) % BLOCK;
const zeros = (length: number): Uint8Array<ArrayBuffer> => new Uint8Array(length);
const octal = (value: number, width: number): string => value.toString(8).padStart(width, "0");
const encode = (text: string): Uint8Array<ArrayBuffer> => new Uint8Array(new TextEncoder().encode(text));

function write(block: Uint8Array, at: number, text: string): void {
  block.set(encode(text), at);
}

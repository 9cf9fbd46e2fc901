/** From what somebody dropped or picked to an archive in the project's store. */

import { session } from "./session.svelte";
import { tar, type TarEntry } from "./tar";

/** What will be uploaded. */
export interface Source {
  /** Name for people: of the folder or the archive. */
  title: string;
  archive: Blob;
  /** Images in a folder; 0 where an archive is sent as it is. */
  images: number;
  /** Files of texts where there are no images. */
  texts: number;
  /** True where only somebody can say whether these are images or texts: tables in parquet, archives. */
  unclear: boolean;
  /** Images per top folder, by which somebody sees whether these are the classes. */
  folders: Map<string, number>;
  /** Files left out because they are neither images nor tables of labels. */
  skipped: number;
}

/** How far an upload is, in bytes. */
export interface Progress {
  sent: number;
  total: number;
}

/** An upload that did not work; `message` is for people. */
export class UploadError extends Error {
  constructor(
    message: string,
    readonly hint: string = "",
  ) {
    super(message);
  }
}

export const TEXT_TYPES = [".jsonl", ".txt", ".parquet"];
export const ARCHIVE_TYPES = [".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"];
/** Largest archive the gateway takes: refused here, before a byte is sent. */
export const MAX_BYTES = 8 * 2 ** 30;
const IMAGE = /\.(jpe?g|jpe|png|webp|bmp|gif|tiff?)$/i;
const TABLE = /\.(csv|jsonl|json|xml)$/i;
const TEXT = /\.(jsonl|txt|parquet)$/i;
const PARQUET = /\.parquet$/i;
const JUNK = /(^|\/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(\/|$)/i;

/** Returns what a drop holds. Raises UploadError where nothing in it can be a dataset. */
export async function fromDrop(transfer: DataTransfer): Promise<Source> {
  // Entries must be taken before the first await: the browser empties the list after the event.
  const entries = [...transfer.items].flatMap((item) => item.webkitGetAsEntry() ?? []);
  const files = [...transfer.files];
  const found: TarEntry[] = [];
  for (const entry of entries) await walk(entry, "", found);
  if (!found.length) found.push(...files.map((file) => ({ path: file.name, file })));
  return describe(found, entries.length === 1 ? (entries[0]?.name ?? "") : "");
}

/** Returns what a file input holds, of a folder or of an archive. Raises UploadError. */
export function fromInput(files: FileList): Source {
  const found = [...files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  return describe(found, found[0]?.path.split("/")[0] ?? "");
}

/** Sends an archive; returns its digest. Raises UploadError, also where `signal` stops it. */
export async function send(
  project: string,
  archive: Blob,
  onProgress: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<string> {
  // A login that has ended is made anew before the bytes go, not after them.
  await session.check();
  // fetch() tells nothing about how much of a body has been sent; XMLHttpRequest does.
  return await new Promise((resolve, reject) => {
    if (signal.aborted) return reject(stopped());
    const request = new XMLHttpRequest();
    request.open("POST", `/v1/projects/${encodeURIComponent(project)}/archives`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "text";
    request.upload.onprogress = (event) => onProgress({ sent: event.loaded, total: archive.size });
    request.onload = () => {
      const answer = parse(request.responseText);
      const digest = answer?.archive?.digest;
      if (request.status === 200 && digest) resolve(digest);
      else reject(refusal(request.status, answer?.message));
    };
    request.onerror = () =>
      reject(new UploadError("The connection broke while uploading.", "Is the gateway running? Your files are untouched; try again."));
    request.onabort = () => reject(stopped());
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(archive);
  });
}

/** Returns a name for a dataset made of letters the gateway takes. */
export function idFrom(title: string): string {
  const plain = title.replace(/\.(zip|tgz|tar(\.\w+)?|jsonl|txt|parquet)$/i, "").normalize("NFKD").toLowerCase();
  const id = plain.replace(/[^a-z0-9]+/g, "-").replace(/^[^a-z]+|-+$/g, "");
  return id.slice(0, 50).replace(/-+$/, "") || "images";
}

/** Returns a size as people write it. */
export function bytes(count: number): string {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function describe(found: TarEntry[], title: string): Source {
  const only = found.length === 1 ? found[0] : undefined;
  if (only && ARCHIVE_TYPES.some((type) => only.path.toLowerCase().endsWith(type))) {
    return checked({ title: only.path, archive: only.file, images: 0, texts: 0, unclear: true, folders: new Map(), skipped: 0 });
  }
  const files = found.filter(({ path }) => !JUNK.test(path));
  const kept = files.filter(({ path }) => IMAGE.test(path) || TABLE.test(path));
  const images = kept.filter(({ path }) => IMAGE.test(path));
  if (!images.length) return texts(found, files, title);
  return checked({
    title: title || "images",
    archive: tar(kept),
    images: images.length,
    texts: 0,
    unclear: false,
    folders: byFolder(images.map(({ path }) => path)),
    skipped: files.length - kept.length,
  });
}

function texts(found: TarEntry[], files: TarEntry[], title: string): Source {
  const kept = files.filter(({ path }) => TEXT.test(path));
  if (!kept.length) throw nothing(found);
  return checked({
    title: title || "texts",
    archive: tar(kept),
    images: 0,
    texts: kept.length,
    unclear: kept.every(({ path }) => PARQUET.test(path)),
    folders: new Map(),
    skipped: files.length - kept.length,
  });
}

function checked(source: Source): Source {
  if (source.archive.size > MAX_BYTES) {
    throw new UploadError(
      `“${source.title}” is ${bytes(source.archive.size)}; an upload may be ${bytes(MAX_BYTES)} at most.`,
      "Take fewer or smaller images, or add the folder on the server: stillhouse datasets add FOLDER.",
    );
  }
  if (source.archive.size === 0) throw new UploadError(`“${source.title}” is empty.`, "Choose another file.");
  return source;
}

function nothing(found: TarEntry[]): UploadError {
  const what = found.length
    ? found.length === 1 ? `“${found[0]?.path}” is neither image nor text.` : `None of the ${found.length.toLocaleString("en")} files is an image or a text.`
    : "There are no files in it.";
  return new UploadError(what, "Drop a folder with one folder of images (JPEG, PNG, WebP, ...) per class, a zip of it, or texts (.jsonl, .txt, .parquet).");
}

/** Counts images by the first folder in which their paths differ. */
function byFolder(paths: string[]): Map<string, number> {
  const split = paths.map((path) => path.split("/"));
  let depth = 0;
  while (split.every((parts) => parts.length > depth + 2 && parts[depth] === split[0]?.[depth])) depth += 1;
  const counts = new Map<string, number>();
  for (const parts of split) {
    const folder = parts.length > depth + 1 ? (parts[depth] ?? "") : "";
    counts.set(folder, (counts.get(folder) ?? 0) + 1);
  }
  return counts;
}

async function walk(entry: FileSystemEntry, above: string, found: TarEntry[]): Promise<void> {
  const path = above + entry.name;
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    found.push({ path, file });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    // A reader gives about 100 entries at a time and an empty list at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const child of some) await walk(child, `${path}/`, found);
  }
}

function stopped(): UploadError {
  return new UploadError("The upload was stopped.", "Nothing was kept.");
}

interface Answer {
  archive?: { digest?: string };
  message?: string;
}

function parse(text: string): Answer | undefined {
  try {
    return JSON.parse(text) as Answer;
  } catch {
    return undefined;
  }
}

function refusal(status: number, message = ""): UploadError {
  if (status === 413) return new UploadError(message || "The archive is too large.", "Take fewer or smaller images.");
  if (status === 400) return new UploadError(message || "This is not an archive.", "Choose a zip or tar file, or a folder.");
  return new UploadError(message || `The gateway refused the upload (${status}).`, "Try again.");
}

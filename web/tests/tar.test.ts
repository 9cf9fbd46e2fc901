import { describe, expect, it } from "vitest";

import { tar } from "../src/lib/tar";

/** Reads an archive back: path, size and text of each member, pax paths applied. */
async function members(archive: Blob): Promise<{ path: string; text: string }[]> {
  const all = new Uint8Array(await archive.arrayBuffer());
  const text = (from: number, to: number): string =>
    new TextDecoder().decode(all.subarray(from, to)).split("\0")[0] ?? "";
  const found: { path: string; text: string }[] = [];
  let longPath = "";
  for (let at = 0; all[at] !== 0; ) {
    const size = parseInt(text(at + 124, at + 136), 8);
    const body = text(at + 512, at + 512 + size);
    if (text(at + 156, at + 157) === "x") longPath = /path=(.*)\n/.exec(body)?.[1] ?? "";
    else {
      found.push({ path: longPath || text(at, at + 100), text: body });
      longPath = "";
    }
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return found;
}

describe("tar", () => {
  it("keeps paths and bytes, also long, accented and dangerous ones", async () => {
    const paths = ["apple/1.jpg", `deep/${"x".repeat(150)}.png`, "café/ü.jpg", "<img src=x onerror=alert(1)>.jpg"];
    const archive = tar(paths.map((path, i) => ({ path, file: new Blob([`image ${i}`]) })));
    expect(await members(archive)).toEqual(paths.map((path, i) => ({ path, text: `image ${i}` })));
  });

  it("is a whole number of blocks with ustar magic and a right checksum", async () => {
    const archive = tar([{ path: "a/1.jpg", file: new Blob(["x".repeat(513)]) }]);
    const all = new Uint8Array(await archive.arrayBuffer());
    expect(all.length % 512).toBe(0);
    expect(new TextDecoder().decode(all.subarray(257, 262))).toBe("ustar");
    const stated = parseInt(new TextDecoder().decode(all.subarray(148, 154)), 8);
    const header = all.slice(0, 512).fill(32, 148, 156);
    expect(header.reduce((sum, byte) => sum + byte, 0)).toBe(stated);
  });

  it("holds an empty file and an empty list", async () => {
    expect(await members(tar([{ path: "empty.csv", file: new Blob([]) }]))).toEqual([{ path: "empty.csv", text: "" }]);
    expect(tar([]).size).toBe(1024);
  });
});

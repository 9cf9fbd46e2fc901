import { describe, expect, it } from "vitest";

import { MAX_BYTES, UploadError, bytes, fromInput, idFrom } from "../src/lib/upload";

function file(path: string, size = 4): File {
  const made = new File([new Uint8Array(4)], path.split("/").at(-1) ?? "");
  Object.defineProperty(made, "webkitRelativePath", { value: path.includes("/") ? path : "" });
  Object.defineProperty(made, "size", { value: size });
  return made;
}

const list = (...paths: string[]): FileList => paths.map((path) => file(path)) as unknown as FileList;

describe("fromInput", () => {
  it("counts images per class folder below the common ones and leaves junk out", () => {
    const source = fromInput(
      list("fruit/all/apple/1.jpg", "fruit/all/apple/2.PNG", "fruit/all/pear/1.webp", "fruit/all/.DS_Store", "fruit/all/notes.docx"),
    );
    expect(source.title).toBe("fruit");
    expect(source.images).toBe(3);
    expect(Object.fromEntries(source.folders)).toEqual({ apple: 2, pear: 1 });
    expect(source.skipped).toBe(1);
  });

  it("sends an archive as it is", () => {
    const source = fromInput(list("photos.zip"));
    expect(source.archive).toBeInstanceOf(File);
    expect(source.images).toBe(0);
  });

  it("takes texts where there are no images, and asks about tables", () => {
    const source = fromInput(list("notes/a.jsonl", "notes/b.TXT", "notes/c.docx"));
    expect([source.texts, source.images, source.skipped, source.unclear]).toEqual([2, 0, 1, false]);
    expect(fromInput(list("table.parquet")).unclear).toBe(true);
    expect(fromInput(list("photos.zip")).unclear).toBe(true);
    expect(fromInput(list("fruit/a/1.jpg", "fruit/labels.jsonl")).texts).toBe(0);
  });

  it("refuses what holds no image, is empty or too large, before a byte is sent", () => {
    expect(() => fromInput(list("a/readme.docx"))).toThrow(UploadError);
    expect(() => fromInput(list())).toThrow(/no files/);
    const huge = [file("huge.zip", MAX_BYTES + 1)] as unknown as FileList;
    expect(() => fromInput(huge)).toThrow(/8.6 GB/);
    expect(() => fromInput([file("none.zip", 0)] as unknown as FileList)).toThrow(/empty/);
  });
});

describe("idFrom", () => {
  it.each([
    ["My Photos (2024).zip", "my-photos-2024"],
    ["Äpfel & Birnen", "a-pfel-birnen"],
    ["2024", "images"],
    ["<img src=x>", "img-src-x"],
    ["x.tar.gz", "x"],
    ["Stamps.jsonl", "stamps"],
  ])("%s -> %s", (title, id) => expect(idFrom(title)).toBe(id));
});

describe("bytes", () => {
  it.each([[0, "0 B"], [999, "999 B"], [1500, "1.5 KB"], [8.6e9, "8.6 GB"]])("%d -> %s", (n, text) =>
    expect(bytes(n)).toBe(text),
  );
});

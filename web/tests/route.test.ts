import { expect, it } from "vitest";
import { formatHash, NOTHING, parseHash } from "../src/lib/route";
import { readSafetensors } from "../src/lib/safetensors";

it("reads back what it writes", () => {
  const selection = { ...NOTHING, student: "fruit", view: "images" as const, version: "3", label: "Pink Lady & co", concept: "<b>", subset: "both-wrong", image: "a/b ä.jpg" };
  expect(parseHash(formatHash(selection))).toEqual(selection);
});

it("falls back where an address is broken", () => {
  expect(parseHash("#/p/%E0%A4%A/x")).toEqual(NOTHING);
  expect(parseHash("#/p/default/s/fruit/nonsense").view).toBe("performance");
});

it("reads safetensors and refuses what is cut off", () => {
  const header = new TextEncoder().encode('{"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}');
  const whole = new Uint8Array(8 + header.length + 9);
  new DataView(whole.buffer).setBigUint64(0, BigInt(header.length), true);
  whole.set(header, 8);
  whole[8 + header.length] = 7;
  new DataView(whole.buffer).setFloat32(8 + header.length + 5, 2.5, true);
  const found = readSafetensors(whole.buffer);
  expect(Array.from(found.get("a")!.values)).toEqual([0, 2.5]);
  expect(Array.from(found.get("b")!.values)).toEqual([7]);
  expect(() => readSafetensors(whole.buffer.slice(0, whole.length - 1))).toThrow(/do not fill/);
  expect(() => readSafetensors(new ArrayBuffer(4))).toThrow(/cut off/);
});

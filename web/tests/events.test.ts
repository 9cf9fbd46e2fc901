import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { follow } from "../src/lib/events";

class FakeSource extends EventTarget {
  static all: FakeSource[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((message: MessageEvent<string>) => void) | null = null;
  closed = false;

  constructor(readonly url: string) {
    super();
    FakeSource.all.push(this);
  }

  close(): void {
    this.closed = true;
  }

  say(state: string, id: string): void {
    const data = JSON.stringify({ job: { state }, message: id, eventTime: "" });
    this.onmessage?.(new MessageEvent("message", { data, lastEventId: id }));
  }
}

const JOB = "projects/p/distillationJobs/j";
const open = (url: string): EventSource => new FakeSource(url) as unknown as EventSource;
const listener = () => ({ onEvent: vi.fn(), onConnection: vi.fn(), onRefused: vi.fn() });

beforeEach(() => {
  FakeSource.all = [];
  vi.useFakeTimers();
});
afterEach(() => vi.useRealTimers());

describe("follow", () => {
  it("goes on after the last event when the connection breaks", () => {
    const told = listener();
    follow(JOB, told, open);
    FakeSource.all[0]?.say("JOB_STATE_RUNNING", "tok/1");
    FakeSource.all[0]?.dispatchEvent(new Event("error"));
    expect(told.onConnection).toHaveBeenLastCalledWith(false, "");
    vi.advanceTimersByTime(600);
    expect(FakeSource.all.map((one) => one.url)).toEqual([
      `/v1/${JOB}:watch`,
      `/v1/${JOB}:watch?resumeToken=tok%2F1`,
    ]);
  });

  it("ends with the job", () => {
    const told = listener();
    follow(JOB, told, open);
    FakeSource.all[0]?.say("JOB_STATE_SUCCEEDED", "2");
    FakeSource.all[0]?.dispatchEvent(new Event("error"));
    vi.advanceTimersByTime(60_000);
    expect(FakeSource.all).toHaveLength(1);
    expect(FakeSource.all[0]?.closed).toBe(true);
  });

  it("asks no more for a job that is not there, and again where the gateway was away", () => {
    const told = listener();
    follow(JOB, told, open);
    FakeSource.all[0]?.dispatchEvent(new MessageEvent("error", { data: '{"code":14,"message":"draining"}' }));
    vi.advanceTimersByTime(600);
    FakeSource.all[1]?.dispatchEvent(new MessageEvent("error", { data: '{"code":5,"message":"no job j"}' }));
    vi.advanceTimersByTime(60_000);
    expect(FakeSource.all).toHaveLength(2);
    expect(told.onRefused).toHaveBeenCalledWith("no job j");
  });

  it("says what the server said of a connection it did not take, and asks again", () => {
    const told = listener();
    follow(JOB, told, open);
    FakeSource.all[0]?.dispatchEvent(new MessageEvent("error", { data: '{"code":8,"message":"too many calls"}' }));
    expect(told.onConnection).toHaveBeenLastCalledWith(false, "too many calls");
    vi.advanceTimersByTime(600);
    expect(FakeSource.all).toHaveLength(2);
  });

  it("waits for the login where a session has ended, then goes on after the last event", async () => {
    const told = listener();
    let login = (): void => undefined;
    const renewed = vi.fn(() => new Promise<void>((resolve) => (login = resolve)));
    follow(JOB, told, open, renewed);
    FakeSource.all[0]?.say("JOB_STATE_RUNNING", "1");
    FakeSource.all[0]?.dispatchEvent(new MessageEvent("error", { data: '{"code":16,"message":"this session has ended"}' }));
    vi.advanceTimersByTime(60_000);
    expect([FakeSource.all.length, FakeSource.all[0]?.closed]).toEqual([1, true]);
    expect(renewed).toHaveBeenCalledWith(expect.objectContaining({ status: 401, message: "this session has ended" }), 0);
    login();
    await vi.runAllTimersAsync();
    expect(FakeSource.all[1]?.url).toBe(`/v1/${JOB}:watch?resumeToken=1`);
    expect(told.onRefused).not.toHaveBeenCalled();
  });

  it("stops when told to", () => {
    const stop = follow(JOB, listener(), open);
    stop();
    expect(FakeSource.all[0]?.closed).toBe(true);
  });
});

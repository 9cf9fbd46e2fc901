import { expect, it } from "vitest";
import { planGrid } from "../src/lib/grid";

it("keeps few cells of many in the page", () => {
  const plan = planGrid(10_000, 600, 110, 40, 50_000, 800);
  expect(plan.columns).toBe(5);
  expect(plan.to - plan.from).toBeLessThan(100);
  expect(plan.top).toBeLessThanOrEqual(50_000);
  expect(plan.top + ((plan.to - plan.from) / plan.columns) * plan.rowHeight).toBeGreaterThan(50_800);
  expect(plan.height).toBe(2000 * plan.rowHeight);
});

it("ends with the last cell, and is empty without any", () => {
  expect(planGrid(7, 600, 110, 40, 9_999, 800).to).toBe(7);
  const none = planGrid(0, 600, 110, 40, 0, 800);
  expect([none.from, none.to, none.height]).toEqual([0, 0, 0]);
});

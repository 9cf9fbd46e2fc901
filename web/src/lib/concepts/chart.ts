/** The map of concepts as an ECharts chart: only the parts of the library that it needs. */

import { ScatterChart } from "echarts/charts";
import { DataZoomInsideComponent, GridComponent, TooltipComponent } from "echarts/components";
import { init, use, type ECharts, type EChartsCoreOption } from "echarts/core";
import { LabelLayout } from "echarts/features";
import { CanvasRenderer } from "echarts/renderers";

use([ScatterChart, GridComponent, TooltipComponent, DataZoomInsideComponent, LabelLayout, CanvasRenderer]);

/** A point of the map. */
export interface Point {
  name: string;
  x: number;
  y: number;
  /** Diameter, in pixels. */
  size: number;
  colour: string;
  /** What the tooltip says below the name. */
  text: string;
  named: boolean;
}

export interface Look {
  text: string;
  muted: string;
  panel: string;
  line: string;
  accent: string;
}

/** Places the points of `inner` [n, 2] around the middle of `outer` [m, 2] with the same mean distance from it. */
export function spreadOut(outer: Float32Array, inner: Float32Array): { x: (at: number) => number; y: (at: number) => number } {
  const [here, there] = [middleOf(outer), middleOf(inner)];
  const scale = there.radius > 0 ? here.radius / there.radius : 1;
  return {
    x: (at) => here.x + (inner[2 * at]! - there.x) * scale,
    y: (at) => here.y + (inner[2 * at + 1]! - there.y) * scale,
  };
}

function middleOf(points: Float32Array): { x: number; y: number; radius: number } {
  const count = Math.max(points.length / 2, 1);
  const middle = { x: 0, y: 0, radius: 0 };
  for (let i = 0; i < points.length; i += 2) {
    middle.x += points[i]! / count;
    middle.y += points[i + 1]! / count;
  }
  for (let i = 0; i < points.length; i += 2) middle.radius += Math.hypot(points[i]! - middle.x, points[i + 1]! - middle.y) / count;
  return middle;
}

/** Makes a chart in an element; `onPick` gets the name of a concept. */
export function makeMap(element: HTMLElement, onPick: (name: string) => void): ECharts {
  const chart = init(element, null, { renderer: "canvas" });
  chart.on("click", (event) => {
    if (event.seriesId === "concepts" && event.name) onPick(event.name);
  });
  return chart;
}

/** Draws concepts as dots and classes as named diamonds; `picked` is the name of the chosen concept. */
export function drawMap(chart: ECharts, concepts: readonly Point[], classes: readonly Point[], picked: string, look: Look): void {
  // To the outermost points and no further; rounded ends would leave half of the map empty.
  const axis = { type: "value", min: "dataMin", max: "dataMax", show: false };
  const option: EChartsCoreOption = {
    animation: false,
    grid: { left: 30, right: 60, top: 26, bottom: 18 },
    xAxis: axis,
    yAxis: axis,
    dataZoom: [
      { type: "inside", xAxisIndex: 0, filterMode: "none" },
      { type: "inside", yAxisIndex: 0, filterMode: "none" },
    ],
    tooltip: {
      // Rich text is drawn on the canvas: no markup is made of names, and the page's policy holds.
      renderMode: "richText",
      confine: true,
      backgroundColor: look.panel,
      borderColor: look.line,
      textStyle: { color: look.text, fontSize: 12 },
      formatter: (event: { data: { name: string; text: string } }) => `${event.data.name}\n${event.data.text}`,
    },
    series: [
      { id: "concepts", type: "scatter", data: concepts.map((one) => dot(one, one.name === picked, look)), labelLayout: { hideOverlap: true }, z: 2 },
      { id: "classes", type: "scatter", data: classes.map((one) => diamond(one, look)), labelLayout: { moveOverlap: "shiftY" }, z: 3 },
    ],
  };
  chart.setOption(option, { replaceMerge: ["series"] });
}

function dot(one: Point, picked: boolean, look: Look): object {
  return {
    name: one.name,
    text: one.text,
    value: [one.x, one.y],
    symbolSize: picked ? Math.max(one.size, 12) : one.size,
    itemStyle: { color: one.colour, opacity: picked ? 1 : 0.75, borderColor: picked ? look.text : look.panel, borderWidth: picked ? 2 : 0.5 },
    label: { show: one.named || picked, formatter: "{b}", position: "right", color: look.text, fontSize: 11, fontWeight: picked ? "bold" : "normal" },
    z: picked ? 5 : 2,
  };
}

function diamond(one: Point, look: Look): object {
  return {
    name: one.name,
    text: one.text,
    value: [one.x, one.y],
    symbol: "diamond",
    symbolSize: one.size,
    itemStyle: { color: look.panel, borderColor: one.colour, borderWidth: 2 },
    label: { show: true, formatter: "{b}", position: "top", color: one.colour, fontSize: 11, fontWeight: "bold" },
  };
}

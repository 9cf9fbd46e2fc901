/** Learning curves as an ECharts chart: only the parts of the library that they need. */

import { LineChart } from "echarts/charts";
import { GridComponent, TooltipComponent } from "echarts/components";
import { init, use, type ECharts } from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";

import type { Point } from "./curves";

use([LineChart, GridComponent, TooltipComponent, CanvasRenderer]);

export interface Look {
  text: string;
  muted: string;
  panel: string;
  line: string;
  /** Colours of the runs, in turn. */
  lines: string[];
}

/** Patterns of lines, which tell runs apart where colours do not. */
export const STYLES = ["solid", "dashed", "dotted"];

/** Makes a chart in an element. */
export const makeCurves = (element: HTMLElement): ECharts => init(element, null, { renderer: "canvas" });

/** Returns how an axis looks. */
export const axisLook = (look: Look): object => ({
  axisLine: { lineStyle: { color: look.line } },
  axisLabel: { color: look.muted, fontSize: 11 },
  splitLine: { lineStyle: { color: look.line } },
});

/** Returns how a tooltip looks. Rich text is drawn on the canvas: no markup is made of names, and the page's policy holds. */
export const tooltipLook = (look: Look): object => ({
  renderMode: "richText",
  confine: true,
  backgroundColor: look.panel,
  borderColor: look.line,
  textStyle: { color: look.text, fontSize: 12 },
});

/** Draws the runs of one series. */
export function drawCurves(chart: ECharts, runs: Readonly<Record<string, readonly Point[]>>, look: Look): void {
  const axis = axisLook(look);
  chart.setOption(
    {
      animation: false,
      grid: { left: 44, right: 14, top: 10, bottom: 24 },
      xAxis: { type: "value", minInterval: 1, min: "dataMin", max: "dataMax", ...axis, splitLine: { show: false } },
      yAxis: { type: "value", scale: true, ...axis },
      tooltip: {
        trigger: "axis",
        ...tooltipLook(look),
        formatter: (found: { seriesName: string; value: [number, number] }[]) =>
          [`step ${found[0]?.value[0].toLocaleString("en") ?? ""}`, ...found.map((one) => `${one.seriesName} ${one.value[1].toPrecision(4)}`)].join("\n"),
      },
      series: Object.entries(runs).map(([run, points], at) => ({
        name: run,
        type: "line",
        data: points,
        showSymbol: points.length < 20,
        symbolSize: 5,
        itemStyle: { color: look.lines[at % look.lines.length] },
        lineStyle: { width: 2, type: STYLES[Math.floor(at / look.lines.length) % STYLES.length] },
      })),
    },
    { replaceMerge: ["series"] },
  );
}

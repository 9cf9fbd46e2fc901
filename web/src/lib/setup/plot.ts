/** Size against quality as an ECharts chart: only the parts of the library that it needs. */

import { LineChart, ScatterChart } from "echarts/charts";
import { GridComponent, TooltipComponent } from "echarts/components";
import { init, use, type ECharts } from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";

import { compact } from "../format";
import { shapeText, type ArmMark, type Candidate, type Plot } from "./candidates";
import { STYLES, axisLook, tooltipLook, type Look as Plain } from "./chart";

use([LineChart, ScatterChart, GridComponent, TooltipComponent, CanvasRenderer]);

/** `lines` are the colours of the arms, in turn. */
export interface Look extends Plain {
  /** Of the whole model, which teaches. */
  teacher: string;
  /** Of the chosen candidate. */
  student: string;
  /** Around the picked candidate. */
  accent: string;
}

/** Symbols by what a candidate cuts; anything else is a circle. */
export const SYMBOLS: Record<string, string> = { width: "circle", depth: "triangle", mixed: "diamond" };
/** Symbols of the arms, in turn. */
export const ARM_SYMBOLS = ["circle", "rect", "triangle", "diamond", "arrow"];

interface Datum {
  value: [x: number, y: number];
  text: string;
  number?: number;
}

/** Makes a plot in an element; `onPick` gets the number of a candidate. */
export function makePlot(element: HTMLElement, onPick: (number: number) => void): ECharts {
  const chart = init(element, null, { renderer: "canvas" });
  chart.on("click", (event) => {
    const { number } = (event.data ?? {}) as Partial<Datum>;
    if (number !== undefined) onPick(number);
  });
  return chart;
}

/** Draws a plot; `picked` is the number of a candidate, or -1. */
export function drawPlot(chart: ECharts, plot: Plot, picked: number, look: Look): void {
  const axis = { type: "value", nameTextStyle: { color: look.muted, fontSize: 11 }, ...axisLook(look) };
  chart.setOption(
    {
      animation: false,
      grid: { left: 46, right: 16, top: 24, bottom: 40 },
      xAxis: {
        ...axis, min: plot.x[0], max: plot.x[1], name: "parameters", nameLocation: "middle", nameGap: 24, splitLine: { show: false }, splitNumber: 4,
        axisLabel: { color: look.muted, fontSize: 11, formatter: compact, showMinLabel: false, showMaxLabel: false, hideOverlap: true },
      },
      yAxis: {
        ...axis, min: plot.y[0], max: plot.y[1], name: "nats a token, held out", nameTextStyle: { color: look.muted, fontSize: 11, align: "left" },
        axisLabel: { color: look.muted, fontSize: 11, showMinLabel: false, showMaxLabel: false, formatter: (value: number) => value.toPrecision(3) },
      },
      tooltip: { trigger: "item", ...tooltipLook(look), formatter: (event: { data: Datum }) => event.data.text },
      series: [
        { id: "whole", type: "line", silent: true, showSymbol: false, data: wholeLine(plot), lineStyle: { color: look.teacher, width: 2, type: "dashed" } },
        ...plot.arms.map((arm, at) => intervalOf(arm, at, look)),
        { id: "untried", type: "scatter", data: plot.untried.map((one) => tick(one, plot, picked, look)), z: 3 },
        { id: "tried", type: "scatter", data: plot.tried.map((one) => mark(one, picked, look)), z: 4 },
        { id: "arms", type: "scatter", data: plot.arms.map((arm, at) => armPoint(arm, at, look)), z: 5 },
      ],
    },
    { replaceMerge: ["series"] },
  );
}

const wholeLine = ({ whole, x }: Plot): [number, number][] => (Number.isFinite(whole) ? [[x[0], whole], [x[1], whole]] : []);
const armColour = (at: number, look: Look): string => look.lines[at % look.lines.length] ?? look.text;

function intervalOf(arm: ArmMark, at: number, look: Look): object {
  return {
    id: `interval ${arm.arm}`,
    type: "line",
    silent: true,
    data: [[arm.x, arm.low], [arm.x, arm.high]],
    symbol: "rect",
    symbolSize: [9, 2],
    itemStyle: { color: armColour(at, look) },
    lineStyle: { color: armColour(at, look), width: 2, type: STYLES[at % STYLES.length] },
  };
}

function armPoint(arm: ArmMark, at: number, look: Look): object {
  const interval = arm.high > arm.low ? ` [${arm.low.toFixed(3)}, ${arm.high.toFixed(3)}]` : "";
  return {
    value: [arm.x, arm.value],
    text: `${arm.title}\n${arm.value.toFixed(3)}${interval} after the whole training`,
    symbol: ARM_SYMBOLS[at % ARM_SYMBOLS.length],
    symbolSize: 9,
    itemStyle: { color: armColour(at, look) },
  };
}

function mark(one: Candidate, picked: number, look: Look): object {
  return {
    value: [one.parameters, one.loss],
    text: `${told(one)}\n${one.loss.toFixed(3)} after its short training`,
    number: one.number,
    symbol: SYMBOLS[one.kind] ?? "circle",
    symbolSize: one.number === picked ? 17 : 12,
    itemStyle: { color: one.chosen ? look.student : look.panel, borderColor: edge(one, picked, look), borderWidth: one.number === picked ? 3 : 2 },
  };
}

/** A candidate that was not trained: a tick on the lower axis. */
function tick(one: Candidate, plot: Plot, picked: number, look: Look): object {
  return {
    value: [one.parameters, plot.y[0]],
    text: `${told(one)}\nnot trained`,
    number: one.number,
    symbol: "rect",
    symbolSize: one.number === picked ? [6, 20] : [3, 14],
    symbolOffset: [0, "-50%"],
    itemStyle: { color: edge(one, picked, look) },
  };
}

const edge = (one: Candidate, picked: number, look: Look): string => (one.number === picked ? look.accent : one.chosen ? look.student : look.muted);
const told = (one: Candidate): string => `candidate ${one.number}${one.chosen ? ", taken" : ""}\n${one.parameters.toLocaleString("en")} parameters\n${shapeText(one)}`;

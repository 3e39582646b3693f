/**
 * Draws the pulse: a beat for each answer, taller the longer it took; a ripple for each message of the server's own; a flat line
 * while no answer comes, and a faint one before the first. The line moves, unless the user prefers reduced motion: then a line of the
 * last round trips stands still and is drawn anew once a second.
 */

export type Health = "none" | "well" | "silent" | "lost";

interface Beat {
  at: number;
  /** Milliseconds; undefined for a message that the server sent by itself. */
  trip: number | undefined;
}

/** Seconds between two points of the line. Points are at multiples of it, so that a beat keeps its shape as it moves. */
const STEP = 0.012;
/** The seconds that a wide trace shows, and a narrow one. */
const PIXELS_PER_SECOND = 72;
const AT_LEAST_SECONDS = 8;
/** How far a beat reaches, before and after. */
const BEFORE = 0.12;
const AFTER = 0.42;
const STILL = 60;

export class Trace {
  #canvas: HTMLCanvasElement;
  #context: CanvasRenderingContext2D;
  #beats: Beat[] = [];
  #health: { from: number; health: Health }[] = [{ from: 0, health: "none" }];
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  #dark = matchMedia("(prefers-color-scheme: dark)");
  #colours!: Record<Health | "grid", string>;
  #drawn = -Infinity;

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d")!;
    this.#readColours();
    this.#dark.addEventListener("change", () => this.#readColours());
    const frame = () => {
      this.#frame(performance.now() / 1000);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  /** Notes an answer and its milliseconds, or a message of the server without them. */
  beat(trip?: number): void {
    this.#beats.push({ at: performance.now() / 1000, trip });
    if (this.#beats.length > 2000) this.#beats.splice(0, 1000);
  }

  set health(health: Health) {
    if (this.#health.at(-1)!.health !== health) this.#health.push({ from: performance.now() / 1000, health });
    if (this.#health.length > 500) this.#health.splice(0, 250);
  }

  #readColours(): void {
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
    this.#colours = {
      none: colour("line"),
      well: colour("well"),
      silent: colour("silent"),
      lost: colour("lost"),
      grid: colour("grid"),
    };
    this.#drawn = -Infinity;
  }

  #frame(now: number): void {
    if (this.#still.matches && now - this.#drawn < 1) return;
    this.#drawn = now;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== pixelWidth || this.#canvas.height !== pixelHeight) {
      this.#canvas.width = pixelWidth;
      this.#canvas.height = pixelHeight;
    }
    const context = this.#context;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    if (this.#still.matches) this.#drawStill(width, height);
    else this.#drawMoving(now, width, height);
  }

  #drawMoving(now: number, width: number, height: number): void {
    const context = this.#context;
    const edge = width - 14;
    const pace = Math.min(PIXELS_PER_SECOND, width / AT_LEAST_SECONDS);
    const toX = (at: number) => edge - (now - at) * pace;
    const first = Math.floor((now - edge / pace) / STEP);
    const line = this.#line(first, Math.floor(now / STEP), height);
    this.#drawGrid(toX(Math.ceil(now)), pace, width, height);
    const base = height * 0.7;
    const healthAt = this.#healthFrom(first * STEP);
    context.lineWidth = 2;
    context.lineJoin = "round";
    let health = healthAt(first * STEP);
    let y = base;
    context.beginPath();
    for (let index = 0; index < line.length; index++) {
      const at = (first + index) * STEP;
      const next = healthAt(at);
      y = base - (next === "lost" || next === "none" ? 0 : line[index]!);
      context.lineTo(toX(at), y);
      if (next !== health) {
        this.#stroke(health);
        context.moveTo(toX(at), y);
        health = next;
      }
      if (index === line.length - 1) context.lineTo(edge, y);
    }
    this.#stroke(health);
    this.#drawHead(edge, y, this.#colours[health]);
  }

  /** Heights above the base line, one for each step. */
  #line(first: number, last: number, height: number): Float32Array {
    const line = new Float32Array(Math.max(0, last - first + 1));
    for (const { at, trip } of this.#beats) {
      const from = Math.max(0, Math.floor((at - BEFORE) / STEP) - first);
      const to = Math.min(line.length - 1, Math.ceil((at + AFTER) / STEP) - first);
      const tall = trip === undefined ? 0 : height * 0.6 * tallness(trip);
      for (let index = from; index <= to; index++) {
        const away = (first + index) * STEP - at;
        const y = trip === undefined ? height * 0.035 * bump(away - 0.05, 0.045) : tall * beatAt(away);
        // Answers that come all at once are one beat.
        if (Math.abs(y) > Math.abs(line[index]!)) line[index] = y;
      }
    }
    return line;
  }

  #healthFrom(start: number): (at: number) => Health {
    let index = Math.max(0, this.#health.findLastIndex(({ from }) => from <= start));
    return (at) => {
      while ((this.#health[index + 1]?.from ?? Infinity) <= at) index++;
      return this.#health[index]!.health;
    };
  }

  #stroke(health: Health): void {
    const context = this.#context;
    context.strokeStyle = this.#colours[health];
    context.stroke();
    context.beginPath();
  }

  #drawHead(x: number, y: number, colour: string): void {
    const context = this.#context;
    context.fillStyle = colour;
    for (const [radius, alpha] of [[9, 0.18], [4, 1]] as const) {
      context.globalAlpha = alpha;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  /** Level lines, and upright ones from `x` leftwards. */
  #drawGrid(x: number, pace: number, width: number, height: number): void {
    const context = this.#context;
    context.strokeStyle = this.#colours.grid;
    context.lineWidth = 1;
    context.beginPath();
    for (; x > 0; x -= pace) {
      if (x > width) continue;
      context.moveTo(Math.round(x) + 0.5, 0);
      context.lineTo(Math.round(x) + 0.5, height);
    }
    for (let y = height * 0.7; y > 0; y -= height * 0.2) {
      context.moveTo(0, Math.round(y) + 0.5);
      context.lineTo(width, Math.round(y) + 0.5);
    }
    context.stroke();
  }

  #drawStill(width: number, height: number): void {
    const context = this.#context;
    const health = this.#health.at(-1)!.health;
    const trips = this.#beats.flatMap(({ trip }) => trip ?? []).slice(-STILL);
    const base = height * 0.9;
    const toX = (index: number) => 14 + (index * (width - 28)) / (STILL - 1);
    this.#drawGrid(toX(STILL - 1), (10 * (width - 28)) / (STILL - 1), width, height);
    let y = base;
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.beginPath();
    trips.forEach((trip, index) => {
      y = health === "lost" || health === "none" ? base : base - height * 0.75 * tallness(trip);
      context.lineTo(toX(index), y);
    });
    this.#stroke(health);
    if (trips.length) this.#drawHead(toX(trips.length - 1), y, this.#colours[health]);
  }
}

/** From 0.3 for a fifth of a millisecond to 1 for five seconds. */
function tallness(trip: number): number {
  return 0.3 + 0.7 * Math.min(1, Math.max(0, Math.log(trip / 0.2) / Math.log(5000 / 0.2)));
}

/** The shape of a beat: a dip, the peak, a deeper dip, and a slow wave. */
function beatAt(away: number): number {
  return bump(away, 0.022) - 0.16 * bump(away + 0.055, 0.018) - 0.3 * bump(away - 0.058, 0.022) + 0.17 * bump(away - 0.23, 0.05);
}

function bump(away: number, width: number): number {
  return Math.exp(-((away / width) ** 2) / 2);
}

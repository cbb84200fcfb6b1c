"use strict";
// Waveform and spectrogram of a clip while it grows. A clip of any length takes the same memory: the picture has a
// fixed number of columns, and when they are full, each two become one.

const COLUMNS = 1200;
const HOP = 150; // samples from one spectrum to the next: the columns hold 7.5 s at first
const SIZE = 1024; // samples a spectrum is taken from (43 ms)
const ROWS = 96;
const LOW_HZ = 60;
const QUIET_DB = -78;
const LOUD_DB = -18;
const BUDGET_MS = 8; // for spectra, in each drawing

const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
const hertz = (m) => 700 * (10 ** (m / 2595) - 1);

/** In-place Fourier transform of complex numbers; their count is a power of 2. */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    const half = size / 2;
    for (let k = 0; k < half; k++) {
      const cos = Math.cos((-2 * Math.PI * k) / size);
      const sin = Math.sin((-2 * Math.PI * k) / size);
      for (let a = k; a < n; a += size) {
        const b = a + half;
        const x = re[b] * cos - im[b] * sin;
        const y = re[b] * sin + im[b] * cos;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

const WINDOW = Float64Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
/** The bins of each row, [first, last], evenly spaced in mel from the lowest to half the rate. */
const BANDS = Array.from({ length: ROWS }, (_, row) => {
  const edge = (r) => hertz(mel(LOW_HZ) + ((mel(RATE / 2) - mel(LOW_HZ)) * r) / ROWS) / (RATE / SIZE);
  const first = Math.round(edge(row));
  return [first, Math.max(first, Math.round(edge(row + 1)) - 1)];
});

/** Loudness of the bands around a sample of the clip, each 0 to 1, into `out`. */
function spectrum(clip, centre, out) {
  const re = new Float64Array(SIZE);
  const im = new Float64Array(SIZE);
  const start = Math.max(0, centre - SIZE / 2);
  const shift = start - (centre - SIZE / 2);
  clip.samples(start, Math.min(clip.length, centre + SIZE / 2)).forEach((sample, i) => {
    re[i + shift] = (sample / 32768) * WINDOW[i + shift];
  });
  fft(re, im);
  BANDS.forEach(([first, last], row) => {
    let power = 0;
    for (let bin = first; bin <= last; bin++) power = Math.max(power, re[bin] ** 2 + im[bin] ** 2);
    const db = 10 * Math.log10(power + 1e-12) - 20 * Math.log10(SIZE / 4); // 0: a sine of full scale
    out[row] = Math.min(1, Math.max(0, (db - QUIET_DB) / (LOUD_DB - QUIET_DB)));
  });
}

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.peaks = new Float32Array(COLUMNS); // of each column, 0 to 1
    this.bands = Array.from({ length: COLUMNS }, () => new Float32Array(ROWS));
    this.image = new OffscreenCanvas(COLUMNS, ROWS); // the spectrogram, one pixel for each column and row
    this.theme();
    this.show(null);
  }

  /** Take the page's colours anew. */
  theme() {
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(name).trim();
    const stops = this.colour("--spectrum").split(/\s+/).map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    this.palette = Array.from({ length: 256 }, (_, level) => {
      const at = (level / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(at), stops.length - 2);
      return stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (at - low));
    });
    this.stale = 0;
  }

  /** Begin with another clip; null for none. */
  show(clip) {
    this.clip = clip;
    this.per = 1; // spectra in a column
    this.seen = 0; // spectra taken
    this.stale = 0; // the first column that is not in the image
    this.image.getContext("2d").clearRect(0, 0, COLUMNS, ROWS);
  }

  /** Take in what has come, for a few milliseconds at most. Whether something is left. */
  take() {
    const { clip } = this;
    const until = performance.now() + BUDGET_MS;
    const row = new Float32Array(ROWS);
    // A spectrum needs the samples after its centre, unless the clip ends there.
    const ready = () => (clip.done ? this.seen * HOP < clip.length : this.seen * HOP + SIZE / 2 <= clip.length);
    while (clip && ready()) {
      if (performance.now() > until) return true;
      if (this.seen === COLUMNS * this.per) this.halve();
      const column = Math.floor(this.seen / this.per);
      const place = this.seen % this.per;
      if (place === 0) this.peaks[column] = 0;
      for (const sample of clip.samples(this.seen * HOP, Math.min(clip.length, (this.seen + 1) * HOP))) {
        this.peaks[column] = Math.max(this.peaks[column], Math.abs(sample) / 32768);
      }
      spectrum(clip, this.seen * HOP + HOP / 2, row);
      const bands = this.bands[column];
      for (let i = 0; i < ROWS; i++) bands[i] = (place ? bands[i] * place + row[i] : row[i]) / (place + 1);
      this.stale = Math.min(this.stale, column);
      this.seen++;
    }
    return false;
  }

  halve() {
    for (let i = 0; i < COLUMNS / 2; i++) {
      const [a, b] = [this.bands[2 * i], this.bands[2 * i + 1]];
      this.peaks[i] = Math.max(this.peaks[2 * i], this.peaks[2 * i + 1]);
      this.bands[i].set(a.map((value, row) => (value + b[row]) / 2));
    }
    this.per *= 2;
    this.stale = 0;
  }

  /** Bring the image up to date. */
  paint(used) {
    if (this.stale >= used) return;
    const width = used - this.stale;
    const pixels = new ImageData(width, ROWS);
    for (let x = 0; x < width; x++) {
      for (let row = 0; row < ROWS; row++) {
        const rgb = this.palette[Math.round(255 * this.bands[this.stale + x][row])];
        pixels.data.set([...rgb, 255], 4 * ((ROWS - 1 - row) * width + x));
      }
    }
    this.image.getContext("2d").putImageData(pixels, this.stale, 0);
    this.stale = Math.max(0, used - 1); // the last column may not be complete
  }

  /** Draw what there is, with the first `heard` seconds marked as heard. Whether there is more to take in. */
  draw(heard) {
    const more = this.clip !== null && this.take();
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const [full, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(full * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(full * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, full, height);
    if (!this.seen) return more;
    const width = full - 40; // beside it stand the frequencies
    const used = Math.ceil(this.seen / this.per);
    const span = this.clip.done && !more ? used : COLUMNS; // while it grows, there is room to the right
    const second = (width * RATE) / (span * this.per * HOP); // pixels
    const axis = 20;
    const middle = Math.round((height - axis) * 0.4);
    this.paint(used);
    this.waveform(pen, width, middle, span, used, heard * second);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.image, 0, 0, used, ROWS, 0, middle + 8, (width * used) / span, height - axis - middle - 8);
    this.labels(pen, width, height, second, middle + 8, height - axis);
    if (heard && heard < this.clip.seconds) {
      pen.fillStyle = this.colour("--text");
      pen.fillRect(heard * second, 0, 1.5, height - axis);
    }
    return more;
  }

  waveform(pen, width, height, span, used, heard) {
    const loudest = this.peaks.subarray(0, used).reduce((a, b) => Math.max(a, b), 0.1);
    const [bar, gap] = [2, 1];
    pen.fillStyle = this.colour("--accent");
    for (let x = 0; x < (width * used) / span; x += bar + gap) {
      const [from, to] = [x, x + bar + gap].map((at) => Math.min(used, Math.floor((at * span) / width)));
      let peak = 0;
      for (let i = from; i < Math.max(to, from + 1); i++) peak = Math.max(peak, this.peaks[i]);
      const tall = Math.max(2, (peak / loudest) * (height - 4));
      pen.globalAlpha = x < heard ? 1 : 0.45;
      pen.beginPath();
      pen.roundRect(x, (height - tall) / 2, bar, tall, 1);
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  labels(pen, width, height, second, top, bottom) {
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = this.colour("--quiet");
    const step = [0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600].find((s) => s * second >= 56) ?? 7200;
    for (let s = 0; s * second < width - 28; s += step) {
      pen.fillText(step < 1 ? `${s.toFixed(1)} s` : clock(s), s * second, height - 4);
    }
    for (const khz of [1, 2, 4, 8]) {
      const share = (mel(1000 * khz) - mel(LOW_HZ)) / (mel(RATE / 2) - mel(LOW_HZ));
      const y = bottom - share * (bottom - top);
      pen.fillText(`${khz} kHz`, width + 6, y + 4);
    }
  }
}

/** Seconds as 0:07 or 1:02:03. */
function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}

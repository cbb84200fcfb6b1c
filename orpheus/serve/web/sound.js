"use strict";
// Speech as it comes, and its playing. Samples are 16 bit, mono, 24 kHz: what the server sends as PCM.

const RATE = 24000;

/** Speech that grows: `push` what comes over the network, then set `done`. */
class Clip {
  constructor() {
    this.store = new Int16Array(8 * RATE);
    this.length = 0; // samples
    this.half = null; // the first byte of a sample whose second byte is still on its way
    this.done = false; // nothing more will come
    this.note = ""; // what a file of it says of itself
  }

  get seconds() {
    return this.length / RATE;
  }

  /** Append bytes (Uint8Array) of any number, cut anywhere. */
  push(bytes) {
    const held = this.half === null ? 0 : 1;
    const all = new Uint8Array(held + bytes.length);
    if (held) all[0] = this.half;
    all.set(bytes, held);
    const count = all.length >> 1;
    this.half = all.length % 2 ? all[all.length - 1] : null;
    if (this.length + count > this.store.length) {
      const larger = new Int16Array(Math.max(2 * this.store.length, this.length + count));
      larger.set(this.samples(0, this.length));
      this.store = larger;
    }
    const view = new DataView(all.buffer);
    for (let i = 0; i < count; i++) this.store[this.length + i] = view.getInt16(2 * i, true);
    this.length += count;
  }

  /** The samples from `start` to before `end`; no copy. */
  samples(start, end) {
    return this.store.subarray(start, end);
  }

  /** What there is, as the content of a .pcm file. */
  pcm() {
    const view = new DataView(new ArrayBuffer(2 * this.length));
    for (let i = 0; i < this.length; i++) view.setInt16(2 * i, this.store[i], true);
    return new Uint8Array(view.buffer);
  }

  /** What there is, as the content of a .wav file: 44 bytes and between them the note, then the samples. */
  wav() {
    const data = this.pcm();
    const note = new TextEncoder().encode(this.note);
    const room = note.length + 2 - (note.length % 2); // a zero at the end, and an even length
    const info = note.length ? 20 + room : 0;
    const view = new DataView(new ArrayBuffer(44 + info));
    const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
    word(0, "RIFF");
    view.setUint32(4, 36 + info + data.length, true);
    word(8, "WAVEfmt ");
    view.setUint32(16, 16, true);
    view.setUint16(20, 1, true); // PCM
    view.setUint16(22, 1, true); // one channel
    view.setUint32(24, RATE, true);
    view.setUint32(28, 2 * RATE, true); // bytes a second
    view.setUint16(32, 2, true); // bytes a sample
    view.setUint16(34, 16, true); // bits a sample
    if (info) {
      word(36, "LIST");
      view.setUint32(40, 12 + room, true);
      word(44, "INFOICMT");
      view.setUint32(52, room, true);
      new Uint8Array(view.buffer).set(note, 56);
    }
    word(36 + info, "data");
    view.setUint32(40 + info, data.length, true);
    return new Blob([view, data], { type: "audio/wav" });
  }
}

/** Let `count` samples of the clip sound at a point of the context's time that is given in samples. */
function schedule(context, output, clip, start, count, at) {
  const buffer = context.createBuffer(1, count, RATE);
  const target = buffer.getChannelData(0);
  clip.samples(start, start + count).forEach((sample, i) => (target[i] = sample / 32768));
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(output);
  source.start(at / RATE);
  return source;
}

const LEAD = 0.05 * RATE; // from now to the first sample, so that it is not late when it is due
const LATE = 0.01 * RATE; // less than this before it is due counts as too late
const AHEAD = 4 * RATE; // this much is scheduled; more would cost time in each of the context's steps
const WAIT = [0, 0.5 * RATE, RATE, 2 * RATE, 4 * RATE, 8 * RATE]; // gathered before the start, the first stall, ...

/** Plays one clip at a time, while it grows. The context runs at the speech's own rate, so buffers join seamlessly. */
class Player {
  /** `onend` is called when a clip that is done has been heard to its end. */
  constructor(onend) {
    this.onend = onend;
    this.context = null;
    this.clip = null;
    this.sources = new Set();
  }

  /** Play from the beginning. The first call must come from a click or key, or browsers keep silent. */
  play(clip) {
    this.stop();
    this.context ??= new AudioContext({ sampleRate: RATE });
    this.context.resume();
    this.output = this.context.createGain();
    this.output.connect(this.context.destination);
    this.clip = clip;
    this.next = 0; // the first sample that is not scheduled yet
    this.at = 0; // when it is due, in samples of the context's time
    this.marks = []; // {at, from}: from here on, sample `from` sounds at `at`; one for each stall
    this.timer = setInterval(() => this.pump(), 100);
    this.pump();
  }

  /** Whether more samples are needed to go on. */
  get waiting() {
    return this.clip !== null && !this.clip.done && this.at < this.context.currentTime * RATE;
  }

  /** Schedule what has come. To be called when something came; a timer calls it too. */
  pump() {
    if (!this.clip) return;
    const now = Math.ceil(this.context.currentTime * RATE);
    const { clip } = this;
    if (this.next === clip.length && clip.done && this.at <= now) {
      this.stop();
      return this.onend();
    }
    if (this.next < clip.length && this.at < now + LATE) {
      // The start, or the speech ran dry: each time, gather more before going on.
      const wait = WAIT[Math.min(this.marks.length, WAIT.length - 1)];
      if (clip.length - this.next < wait && !clip.done) return;
      this.at = now + LEAD;
      this.marks.push({ at: this.at, from: this.next });
    }
    while (this.next < clip.length && this.at < now + AHEAD) {
      const count = Math.min(clip.length - this.next, RATE);
      const source = schedule(this.context, this.output, clip, this.next, count, this.at);
      this.sources.add(source);
      source.onended = () => this.sources.delete(source);
      this.next += count;
      this.at += count;
    }
  }

  /** Seconds of the clip that have been heard. */
  get position() {
    if (!this.clip) return 0;
    const now = this.context.currentTime * RATE;
    const mark = this.marks.findLast((m) => m.at <= now);
    return mark ? Math.min(mark.from + now - mark.at, this.next) / RATE : 0;
  }

  /** Be silent, within 20 ms and without a click. */
  stop() {
    if (!this.clip) return;
    clearInterval(this.timer);
    const end = this.context.currentTime + 0.02;
    this.output.gain.setValueAtTime(1, this.context.currentTime);
    this.output.gain.linearRampToValueAtTime(0, end);
    for (const source of this.sources) source.stop(end);
    this.sources.clear();
    this.clip = null;
  }
}

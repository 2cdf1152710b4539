// A worker without a dependency, written from docs/protocol.md: `node examples/worker.js`, then ask any gateway.
// The engine is a toy that says words; replace `generate`. The numbers in the comments are the page's steps.
// Settings: PENSTOCK_REDIS_URL (redis://[user:password@]host:port/db), PENSTOCK_POOL, and MODEL, SLOTS, STEP_MS here.
const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const crypto = require("node:crypto");

const url = new URL(process.env.PENSTOCK_REDIS_URL || "redis://127.0.0.1:6379");
const pool = process.env.PENSTOCK_POOL || "";
const model = process.env.MODEL || "mock";
const slots = Number(process.env.SLOTS || 8);
const stepMs = Number(process.env.STEP_MS || 20);
const drainMs = Number(process.env.DRAIN_MS || 0);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ── Redis: one connection, replies in the order of the commands ──────────────────────────────────────────────────────

class Redis {
  constructor(timeoutMs = 3000) { this.timeoutMs = timeoutMs; this.waiting = []; this.data = Buffer.alloc(0); }

  async send(...words) {
    if (!this.socket) await this.connect();
    return this.ask(words);
  }

  async connect() {
    const socket = net.connect(Number(url.port || 6379), url.hostname);
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on("data", (data) => this.read(data));
    socket.on("close", () => this.lose(socket));
    socket.on("error", () => {}); // `close` follows
    if (url.password) this.ask(["AUTH", decodeURIComponent(url.username || "default"), decodeURIComponent(url.password)]).catch(() => {});
    if (url.pathname.length > 1) this.ask(["SELECT", url.pathname.slice(1)]).catch(() => {});
  }

  ask(words) {
    return new Promise((resolve, reject) => {
      const socket = this.socket;
      const timer = setTimeout(() => { socket.destroy(); this.lose(socket); }, this.timeoutMs); // no wait without end
      this.waiting.push({ resolve, reject, timer });
      socket.write(`*${words.length}\r\n` + words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`).join(""));
    });
  }

  lose(socket) {
    if (this.socket !== socket) return;
    const waiting = this.waiting;
    this.socket = undefined; this.waiting = []; this.data = Buffer.alloc(0);
    for (const { reject, timer } of waiting) { clearTimeout(timer); reject(new Error("Redis is away")); }
  }

  read(data) {
    this.data = Buffer.concat([this.data, data]);
    for (let found; this.waiting.length && (found = parse(this.data, 0)); ) {
      this.data = this.data.subarray(found.at);
      const { resolve, reject, timer } = this.waiting.shift();
      clearTimeout(timer);
      if (found.value instanceof Error) reject(found.value); else resolve(found.value);
    }
  }
}

function parse(data, at) { // one reply of RESP2, or undefined while it is not whole
  const end = data.indexOf("\r\n", at);
  if (end < 0) return undefined;
  const text = data.toString("utf8", at + 1, end), next = end + 2, size = Number(text);
  switch (String.fromCharCode(data[at])) {
    case "+": return { value: text, at: next };
    case "-": return { value: new Error(text), at: next };
    case ":": return { value: size, at: next };
    case "$":
      if (size < 0) return { value: null, at: next };
      return data.length < next + size + 2 ? undefined : { value: data.toString("utf8", next, next + size), at: next + size + 2 };
    default: {
      const value = [];
      let place = next;
      for (let i = 0; i < size; i++) {
        const item = parse(data, place);
        if (!item) return undefined;
        value.push(item.value);
        place = item.at;
      }
      return { value: size < 0 ? null : value, at: place };
    }
  }
}

const scripts = {};
for (const name of fs.readdirSync(path.join(__dirname, "../penstock/transports/redis/lua"))) {
  const source = fs.readFileSync(path.join(__dirname, "../penstock/transports/redis/lua", name), "utf8");
  scripts[path.basename(name, ".lua")] = { source, sha: crypto.createHash("sha1").update(source).digest("hex") };
}

async function run(redis, name, keys, ...args) {
  const { source, sha } = scripts[name];
  try {
    return await redis.send("EVALSHA", sha, keys.length, ...keys, ...args);
  } catch (error) {
    if (!error.message.startsWith("NOSCRIPT")) throw error;
    return redis.send("EVAL", source, keys.length, ...keys, ...args);
  }
}

// ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

const Q = pool ? `inference:queue:${pool}` : "inference:queue";
const [workers, about, clock, gateways, dead] = ["workers", "about", "clock", "gateways", "dead"].map((name) => `{${Q}}:${name}`);
const list = (wid) => `{${Q}}:worker:${wid}`;
const jobKey = (id) => `{inference:response:${id}}:job`;
const logKey = (id) => `{inference:response:${id}}:log`;

// ── the engine: replace this ─────────────────────────────────────────────────────────────────────────────────────────

const WORDS = "a river runs under the old stone bridge and nobody asks where it goes".split(" ");
const can = { resumes: true, continuous: true, accepts: [] };

async function* generate(job, tokens) { // the tokens that come after `tokens`, which an earlier attempt has written
  const seed = crypto.createHash("sha1").update(job.prompt || JSON.stringify(job.messages) || "").digest()[0];
  for (let i = tokens.length; ; i++) {
    await pause(stepMs);
    yield `${WORDS[(seed + 5 * i + Math.floor(i / WORDS.length)) % WORDS.length]} `;
  }
}

// ── one life under one lease ─────────────────────────────────────────────────────────────────────────────────────────

class Life {
  constructor() {
    this.wid = `js-${crypto.randomBytes(8).toString("hex")}`; // 1: never used before
    this.redis = new Redis();
    this.lease = new Redis();
    this.blocking = new Redis(6000);
    this.running = new Map(); // every id of the list that is claimed here
    this.isLost = this.isStopping = false;
    this.restUntil = 0;
  }

  says() {
    return JSON.stringify({ id: this.wid, models: { [model]: can }, num_slots: slots, num_free: slots - this.running.size, pid: process.pid });
  }

  async live() {
    const refusal = await this.until(() => run(this.redis, "enlist", [workers, about, clock, gateways], this.wid, this.says())); // 1
    if (refusal) { console.error(refusal); process.exit(2); }
    const beat = this.beat();
    while (!this.isLost && !this.isStopping) await this.take().catch(() => pause(100));
    if (this.isStopping && !this.isLost) await this.stop();
    this.isOver = true;
    await beat;
    if (this.isLost) await this.until(() => run(this.redis, "reap", [Q, list(this.wid), workers, about, clock], this.wid, "reap")); // 1
    for (const redis of [this.redis, this.lease, this.blocking]) redis.socket?.destroy();
  }

  async until(action) {
    for (;;) try { return await action(); } catch { await pause(200); }
  }

  async beat() {
    for (; !this.isOver && !this.isLost; await pause(500)) {
      try {
        const jobs = [...this.running.values()];
        const looks = jobs.map((job) => this.lease.send("HMGET", jobKey(job.id), "state", "worker", "cancel", "owner", "disconnect"));
        const [renewed, ...states] = await Promise.all([
          run(this.lease, "renew", [workers, about, clock, list(this.wid), gateways], this.wid, this.says()), ...looks]);
        if (!renewed[0]) { this.isLost = true; for (const job of jobs) this.forget(job); return; } // 1: drop everything
        states.forEach(([state, worker, cancel, owner, disconnect], i) => { // 7
          if (state !== "running" || worker !== this.wid) { if (!jobs[i].isEnding) this.forget(jobs[i]); }
          else if (cancel || (renewed[3].includes(owner) && disconnect !== "continue")) jobs[i].cancel = cancel || "client";
        });
        for (const wid of renewed[2]) await run(this.lease, "reap", [Q, list(wid), workers, about, clock], wid, "reap");
      } catch { /* Redis is away: the amnesty gives time */ }
    }
  }

  forget(job) { job.isGone = true; if (this.running.get(job.id) === job) this.running.delete(job.id); }

  get suspect() { return [...this.running.values()].find((job) => job.deaths && job.numWritten === job.numGiven); } // 4

  async take() { // 2
    const isResting = Date.now() < this.restUntil || this.suspect;
    if (isResting || this.running.size >= slots) await pause(50);
    else await this.blocking.send("BLMOVE", Q, list(this.wid), "LEFT", "RIGHT", 1).catch((error) => { if (!/^OOM/.test(error.message)) throw error; });
    const want = isResting ? 0 : Math.max(0, slots - this.running.size - 1);
    const held = await run(this.redis, "take", [Q, list(this.wid), workers, clock], this.wid, want);
    for (const id of new Set(held)) if (!this.running.has(id) && !this.isLost) await this.claim(id, "");
  }

  async claim(id, from, lives = "") { // 3
    const [answer, ...more] = await run(this.redis, "claim", [jobKey(id), logKey(id)], id, this.wid, from, lives);
    if (answer === "claimed") return this.open(id, more);
    if (answer === "busy") {
      const keys = [list(more[0]), list(this.wid), workers, clock];
      const settled = from ? 1 : await run(this.redis, "settle", keys, more[0], id, "lives");
      if (settled !== 1) await this.claim(id, more[0], settled === 2 ? "lives" : "");
      return;
    }
    if (answer === "newer") {
      this.restUntil = Date.now() + 1000;
      await run(this.redis, "enqueue", [Q, clock], id, 0, "tail", "");
    } else if (answer === "poisoned" || answer === "unreadable") {
      const said = answer === "poisoned" ? { deaths: more[1], error: "request_poisoned" } : { deaths: 0, error: "unreadable", reason: more[1] };
      return run(this.redis, "add_dead", [dead, list(this.wid)], JSON.stringify({ id, model: more[0], ...said }), id);
    }
    await this.redis.send("LREM", list(this.wid), 1, id);
  }

  async open(id, [attempt, now, deadline, , deaths, text, frames]) {
    const job = { id, attempt, deaths, claimedAt: Date.now(), now, lateAt: Date.now() + deadline - now, tokens: [] };
    for (const frame of frames.map((frame) => JSON.parse(frame))) {
      job.tokens = [...job.tokens.slice(0, frame.seq), ...(frame.tokens || [])];
    }
    job.numGiven = job.numWritten = job.tokens.length;
    let error;
    try {
      const { v, job: asked } = JSON.parse(text);
      if (v !== 1 || asked.id !== id) throw new Error();
      job.asked = asked;
      const { max_tokens, extras, ...sampling } = asked.sampling || {};
      const unable = Object.keys({ ...sampling, ...extras }).find((name) => !can.accepts.includes(name));
      if (asked.model !== model) error = { code: "model_not_found", message: "This worker does not serve the model." };
      else if (asked.task) error = { code: "unsupported_task", message: "This worker has no tasks." };
      else if (unable) error = { code: "unsupported_parameter", message: `This worker does not support ${unable}.`, param: unable };
    } catch {
      error = { code: "internal_error", message: "The request cannot be read." };
    }
    if (deaths && this.suspect) return this.giveBack([job]); // 4: one suspect at a time
    this.running.set(id, job);
    if (error) this.finish(job, { kind: "failed", ...error });
    else this.answer(job).catch(() => this.forget(job));
  }

  async answer(job) {
    const { max_tokens = 256, max_tokens_given = true } = job.asked.sampling ?? {};
    const most = max_tokens_given ? max_tokens : Math.min(max_tokens, 256);
    for await (const token of generate(job.asked, job.tokens)) {
      if (job.isGone) return;
      if (job.cancel === "deadline" || Date.now() >= job.lateAt) {
        return this.finish(job, { kind: "failed", code: "deadline_exceeded", message: "The request did not finish within its timeout_s." });
      }
      if (job.cancel) return this.finish(job, this.done(job, "cancelled"));
      if (job.tokens.length < most) job.tokens.push(token);
      if (job.tokens.length >= most) return this.finish(job, this.done(job, "length"));
      if (!(await this.append(job))) return;
    }
  }

  done(job, finish_reason) {
    const prompt_tokens = (job.asked.prompt || "").split(/\s+/).filter(Boolean).length;
    return { kind: "done", finish_reason, usage: { prompt_tokens, completion_tokens: job.tokens.length } };
  }

  frame(job, fields) {
    const seq = job.numWritten, tokens = job.tokens.slice(seq);
    return JSON.stringify({ id: job.id, attempt: job.attempt, seq, tokens, ...fields });
  }

  async append(job) { // 5: the same bytes until there is an answer
    const frame = this.frame(job, { kind: "tokens" }), end = job.tokens.length;
    job.firstAt ??= job.now + Date.now() - job.claimedAt;
    const args = [job.id, job.attempt, job.numWritten, end, frame];
    const answer = await this.until(() => (job.isGone ? "gone" : run(this.redis, "append", [logKey(job.id)], ...args)));
    if (answer === "ok") job.numWritten = end; else this.forget(job);
    return answer === "ok";
  }

  async finish(job, fields) { // 6
    job.isEnding = true;
    const args = [job.id, job.attempt, job.numWritten, this.frame(job, fields), job.firstAt || 0];
    const answer = await this.until(() => (job.isGone ? "gone" : run(this.redis, "finish", [jobKey(job.id), logKey(job.id)], ...args)));
    if (answer === "ok") await this.redis.send("LREM", list(this.wid), 1, job.id).catch(() => {}); // else it is claimed again, and done
    this.forget(job);
  }

  async giveBack(jobs) {
    const back = [];
    for (const job of jobs) {
      this.forget(job);
      const answer = await this.until(() => run(this.redis, "requeue", [jobKey(job.id)], job.attempt, this.wid));
      if (answer === "queued") back.push(job.id);
      if (answer === "lost") await this.redis.send("LREM", list(this.wid), 1, job.id);
    }
    if (back.length) await this.until(() => run(this.redis, "hand_back", [Q, list(this.wid), clock], ...back));
  }

  async stop() { // 8
    for (const until = Date.now() + drainMs; this.running.size && Date.now() < until; ) await pause(20);
    await this.giveBack([...this.running.values()].filter((job) => !job.isEnding));
    while (this.running.size && !this.isLost) await pause(20);
    await this.until(() => run(this.redis, "reap", [Q, list(this.wid), workers, about, clock], this.wid, "leave"));
  }
}

let life;
let isStopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => { isStopping = life.isStopping = true; });
(async () => {
  while (!isStopping) await (life = new Life()).live();
})();

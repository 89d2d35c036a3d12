// What all load tests share: the mix of requests, think time, accounts, verdicts, the summary.
//
// Environment: BASE_URL (default http://127.0.0.1:8080), SCALE (default 1; 0.1 runs with a tenth
// of the users for a tenth of the time), RESULTS (folder of the summary, which must exist;
// default loadtest/results), ACCOUNTS (default 8).
//
// A refusal on purpose (503 with the code BACKPRESSURE) is counted apart: it is what the server
// is built to do. So is a /ready that says the instance is full. Anything else that is not a
// good answer counts as failed. Latency is judged over accepted requests.

import http from 'k6/http';
import exec from 'k6/execution';
import { sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';

const BASE_URL = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '');
const RESULTS = __ENV.RESULTS || 'loadtest/results';
const ACCOUNTS = Number(__ENV.ACCOUNTS || 8);
const SCALE = Number(__ENV.SCALE || 1);
if (!(SCALE > 0)) throw new Error(`SCALE is a number above 0, not ${__ENV.SCALE}`);

// few metrics: each sample costs k6 as much as a good part of a request
const backpressure = new Counter('backpressure');
const notReady = new Counter('not_ready');
const failed = new Rate('failed');
const acceptedDuration = new Trend('accepted_duration', true);

http.setResponseCallback(http.expectedStatuses(200, 201, 503));

// scale

export function users(count) {
  return count && Math.max(1, Math.round(count * SCALE));
}

export function time(seconds) {
  return `${Math.max(1, Math.round(seconds * 1000 * SCALE))}ms`;
}

export function stage(seconds, target) {
  return { duration: time(seconds), target: users(target) };
}

/** Options of a test whose users come and go by stages, `from` of them at the start. */
export function ramping(from, stages, thresholds) {
  return options({ executor: 'ramping-vus', startVUs: users(from), stages }, thresholds);
}

/** Options of a test with a constant number of users. */
export function constant(count, seconds, thresholds) {
  const scenario = { executor: 'constant-vus', vus: users(count), duration: time(seconds) };
  return options(scenario, thresholds);
}

function options(scenario, thresholds) {
  scenario.gracefulStop = '5s';
  if (scenario.stages) scenario.gracefulRampDown = '5s';
  return {
    scenarios: { users: scenario },
    thresholds,
    setupTimeout: '120s',
    systemTags: ['status', 'method', 'name'],
    summaryTrendStats: ['count', 'avg', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'],
  };
}

// accounts

/** Register accounts that no other run has, log them in, and return their tokens. */
export function setup() {
  const run = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
  const headers = { 'Content-Type': 'application/json', 'X-Forwarded-For': '10.255.255.254' };
  const tokens = [];
  for (let number = 0; number < ACCOUNTS; number++) {
    const name = `load-${run}-${number}`;
    const credentials = { email: `${name}@example.org`, password: `secret of ${name}` };
    const registration = JSON.stringify({ ...credentials, name });
    expect(http.post(`${BASE_URL}/api/auth/register`, registration, { headers }), 201);
    const login = http.post(`${BASE_URL}/api/auth/login`, JSON.stringify(credentials), {
      headers,
    });
    tokens.push(expect(login, 200).json('token'));
  }
  return { tokens };
}

function expect(response, status) {
  if (response.status !== status) {
    exec.test.abort(`setup: ${response.url} answered ${response.status}: ${response.body}`);
  }
  return response;
}

// the mix

const ITEMS = Array.from({ length: 100 }, (_, id) => ({ id, name: `item-${id}`, value: id * 1.5 }));
const ECHO = JSON.stringify({ items: ITEMS });

const MIX = [
  // share in percent, name, request
  [30, '/health', (params) => http.get(`${BASE_URL}/health`, params)],
  [20, '/ready', (params) => http.get(`${BASE_URL}/ready`, params)],
  [20, '/api/users', (params) => http.get(`${BASE_URL}/api/users`, params)],
  [20, '/api/echo', (params) => http.post(`${BASE_URL}/api/echo`, ECHO, params)],
  [10, '/api/metrics', (params) => http.get(`${BASE_URL}/api/metrics`, params)],
];

function choose() {
  let left = Math.random() * 100;
  for (const entry of MIX) {
    left -= entry[0];
    if (left < 0) return entry;
  }
  return MIX[0];
}

// A user is an address of its own, as limits by client address see it through a trusted proxy.
function address(vu) {
  return `10.${(vu >> 16) & 255}.${(vu >> 8) & 255}.${vu & 255}`;
}

/** What a user does again and again: one request of the mix, then 50 to 150 ms of thought. */
export function iteration(data, tags = {}) {
  const [, name, send] = choose();
  const headers = { 'X-Forwarded-For': address(exec.vu.idInTest) };
  if (name === '/api/echo') headers['Content-Type'] = 'application/json';
  if (name === '/api/users') {
    headers.Authorization = `Bearer ${data.tokens[exec.vu.idInTest % data.tokens.length]}`;
  }
  judge(name, send({ headers, tags: { name } }), tags);
  sleep(0.05 + Math.random() * 0.1);
}

function judge(name, response, tags) {
  const whole = name !== '/api/echo' || (response.body || '').includes('"item-99"');
  const good = response.status === 200 && whole;
  const refusal = response.status === 503 ? document(response) : {};
  const full = name === '/ready' && refusal.ready === false && refusal.checks.database.ready;
  if (good) {
    acceptedDuration.add(response.timings.duration, tags);
  } else if (refusal.code === 'BACKPRESSURE') {
    backpressure.add(1, tags);
  } else if (full) {
    notReady.add(1, tags);
  }
  failed.add(!(good || full || refusal.code === 'BACKPRESSURE'), tags);
}

function document(response) {
  try {
    return response.json() || {};
  } catch (error) {
    return {};
  }
}

// the summary

/** Return a handleSummary that writes RESULTS/NAME.json and prints a short table. */
export function summary(name, steps = []) {
  return (data) => {
    const seconds = data.state.testRunDurationMs / 1000;
    const all = figures(data, '', seconds);
    const parts = steps.map((step) => {
      return { users: step, ...figures(data, `{step:${step}}`, seconds) };
    });
    const missed = [];
    for (const [metric, found] of Object.entries(data.metrics)) {
      for (const [threshold, result] of Object.entries(found.thresholds || {})) {
        if (!result.ok) missed.push(`${metric} ${threshold}`);
      }
    }
    const report = { test: name, scale: SCALE, seconds, figures: all, steps: parts, missed };
    return {
      [`${RESULTS}/${name}.json`]: JSON.stringify({ ...report, metrics: data.metrics }, null, 2),
      stdout: table(report),
    };
  };
}

function figures(data, suffix, seconds) {
  const of = (metric, field) => {
    const found = data.metrics[metric + suffix];
    return found ? found.values[field] || 0 : 0;
  };
  const failures = of('failed', 'passes'); // a rate's "passes" are the samples that are true
  const count = failures + of('failed', 'fails');
  return {
    requests: count,
    rps: suffix ? null : count / seconds,
    accepted: of('accepted_duration', 'count'),
    backpressure: of('backpressure', 'count'),
    not_ready: of('not_ready', 'count'),
    failed: failures,
    failed_share: of('failed', 'rate'),
    p50_ms: of('accepted_duration', 'med'),
    p95_ms: of('accepted_duration', 'p(95)'),
    p99_ms: of('accepted_duration', 'p(99)'),
    max_ms: of('accepted_duration', 'max'),
  };
}

function table(report) {
  const found = report.figures;
  const lines = [
    `${report.test}, scale ${report.scale}, ${report.seconds.toFixed(1)} s`,
    `  requests       ${found.requests} (${found.rps.toFixed(0)}/s)`,
    `  accepted       ${found.accepted}`,
    `  backpressure   ${found.backpressure}`,
    `  not ready      ${found.not_ready}`,
    `  failed         ${found.failed} (${(found.failed_share * 100).toFixed(3)} %)`,
    `  accepted, ms   P50 ${found.p50_ms.toFixed(2)}  P95 ${found.p95_ms.toFixed(2)}` +
      `  P99 ${found.p99_ms.toFixed(2)}  max ${found.max_ms.toFixed(2)}`,
  ];
  for (const step of report.steps) {
    const refused = step.requests ? (100 * step.backpressure) / step.requests : 0;
    lines.push(
      `  to ${step.users} users: ${step.requests} requests, ${refused.toFixed(1)} % refused,` +
        ` ${(step.failed_share * 100).toFixed(3)} % failed, P95 ${step.p95_ms.toFixed(1)} ms`,
    );
  }
  const missed = report.missed.join('; ');
  lines.push(missed ? `  MISSED: ${missed}` : '  all thresholds kept');
  return `${lines.join('\n')}\n`;
}

// Stress: up to 20,000 users in 8 minutes, to find the breaking point. Figures are told apart by
// steps of 5,000 users. It fails only where an operator would be woken: P95 above 1 s, or more
// than 1 % failed; where the tighter limits of the load test break, the steps tell.

import exec from 'k6/execution';
import { iteration, ramping, setup, stage, summary, users } from './lib.js';

const STEPS = [5000, 10000, 15000, 20000].map(users);

// k6 reports a metric by tag only where a threshold names it; these always hold
const thresholds = { accepted_duration: ['p(95)<1000'], failed: ['rate<0.01'] };
for (const step of STEPS) {
  for (const metric of ['backpressure', 'not_ready']) {
    thresholds[`${metric}{step:${step}}`] = ['count>=0'];
  }
  thresholds[`accepted_duration{step:${step}}`] = ['p(95)>=0'];
  thresholds[`failed{step:${step}}`] = ['rate>=0'];
}

export { setup };
export const options = ramping(
  0,
  [stage(120, 5000), stage(120, 10000), stage(120, 15000), stage(120, 20000)],
  thresholds,
);

export default function (data) {
  const now = exec.instance.vusActive;
  const step = STEPS.find((bound) => now <= bound) || STEPS[STEPS.length - 1];
  iteration(data, { step: String(step) });
}
export const handleSummary = summary('stress', STEPS);

// Spike: 100 users, suddenly 5,000, then 100 again, in 2.5 minutes. Thresholds are those of peak
// load: P95 below 200 ms, errors below 0.1 %.

import { iteration, ramping, setup, stage, summary } from './lib.js';

export { setup };
export const options = ramping(
  100,
  [stage(30, 100), stage(15, 5000), stage(60, 5000), stage(15, 100), stage(30, 100)],
  { accepted_duration: ['p(95)<200'], failed: ['rate<0.001'] },
);

export default iteration;
export const handleSummary = summary('spike');

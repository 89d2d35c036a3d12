// Load: up to 10,000 users, twice what an instance takes by default.

import { iteration, ramping, setup, stage, summary } from './lib.js';

export { setup };
export const options = ramping(
  0,
  [stage(60, 1000), stage(120, 5000), stage(120, 10000), stage(180, 10000), stage(120, 0)],
  { accepted_duration: ['p(95)<200'], failed: ['rate<0.001'] },
);

export default iteration;
export const handleSummary = summary('load');

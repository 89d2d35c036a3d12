// Smoke: 200 users for 30 seconds; does everything of the mix work at all?

import { constant, iteration, setup, summary } from './lib.js';

export { setup };
export const options = constant(200, 30, {
  accepted_duration: ['p(95)<200'],
  failed: ['rate<0.001'],
});

export default iteration;
export const handleSummary = summary('smoke');

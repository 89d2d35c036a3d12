-- Prints wrk's figures as one line of JSON; with two arguments, connections pause between an
-- answer and the next request for that many milliseconds (least and most, uniformly).
--
-- Only `done` is defined unless a pause is asked for: wrk then sends its one ready-made request
-- and never enters Lua on the way, so the generator is as light as without a script.

function init(args)
  local least, most = tonumber(args[1]), tonumber(args[2])
  if least and most then
    math.randomseed(1)
    function delay()
      return math.random(least, most)
    end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'REPORT {"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p95_us":%d,"p99_us":%d,'
      .. '"max_us":%d,"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
    summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout
  ))
end

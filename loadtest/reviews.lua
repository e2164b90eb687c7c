-- wrk -t1 -c32 -d20s --latency -s loadtest/reviews.lua http://127.0.0.1:8080
-- Closed loop over POST /v1/predict with the bundled reviews, natural lengths, in random order. BODIES names a file with
-- one request body per line instead, for the path of the URL.

local bodies = {}
local file = os.getenv("BODIES")
for line in io.lines(file or "training/sample_reviews.tsv") do
  local text = line:match("^%d+\t(.-)\t[01]$")
  if file then
    bodies[#bodies + 1] = line
  elseif text then
    bodies[#bodies + 1] = '{"text":"' .. text:gsub('[\\"]', "\\%0") .. '"}'
  end
end
math.randomseed(1)

wrk.method = "POST"
if not file then
  wrk.path = "/v1/predict"
  wrk.headers["content-type"] = "application/json"
end

function request()
  return wrk.format(nil, nil, nil, bodies[math.random(#bodies)])
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("failed: %d status, %d connect, %d read, %d write, %d timeout\n",
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end

-- Other requests than one GET, reported as report.lua does. The first argument says which:
--   pipeline N      so many GETs in one packet
--   cold            a head that no one has sent before
--   close           a connection for each
--   fields N V …    with these header fields
--   post FILE       its content as JSON; sent ready made, as a GET is

dofile((debug.getinfo(1, "S").source:sub(2)):match("(.*/)") .. "report.lua")

function init(args)
  if args[1] == "pipeline" then
    local all = string.rep(wrk.format("GET", wrk.path), tonumber(args[2]))
    request = function() return all end
  elseif args[1] == "cold" then
    local before, after = wrk.format("GET", wrk.path):match("^(.*)(\r\n\r\n)$")
    local number = math.floor(os.clock() * 1e6) * 1000
    request = function()
      number = number + 1
      return before .. "\r\nX-Number: " .. number .. after
    end
  elseif args[1] == "close" then
    wrk.headers["Connection"] = "close"
  elseif args[1] == "fields" then
    for at = 2, #args, 2 do
      wrk.headers[args[at]] = args[at + 1]
    end
  elseif args[1] == "post" then
    local file = assert(io.open(args[2], "rb"))
    wrk.method, wrk.body = "POST", file:read("*a")
    wrk.headers["Content-Type"] = "application/json"
    file:close()
  end
end

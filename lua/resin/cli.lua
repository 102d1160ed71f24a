-- The program behind the launcher: runs a script or a piece of code with resin on the path. An error prints its message and
-- the user's own frames, and the exit code is 1.

local here = arg[0]:match("^(.*)resin/cli%.lua$") or "./"
local build = table.remove(arg, 1)      -- the launcher's directory; generated files lie below it in a checkout
package.path = here .. "?.lua;" .. here .. "?/init.lua;" .. build .. "/lua/?.lua;" .. package.path

local USAGE = [[
usage: resin script.lua [arguments]    run a script
       resin -e 'code' [arguments]     run code; resin is already a local
       resin -v                        print the version and how it was built
]]

local function stop(message)
  io.stderr:write("resin: ", message, "\n")
  os.exit(1, true)
end

-- The frames of a traceback that lie in the user's code.
local function user_frames(traceback)
  local frames = {}
  for line in traceback:gmatch("[^\n]+") do
    local source = line:match("^%s+(.-):%d+:")
    local in_c = line:match("^%s+%[C%]")
    local own = source and (source:find(here, 1, true) == 1 or source:find(build, 1, true) == 1 or
                            source:find("^%.%.%..*/resin/[%w_/]+%.lua$"))
    if source and not in_c and not own then frames[#frames + 1] = line end
  end
  return frames
end

local function report(message, traceback)
  io.stderr:write("error: ", message, "\n")
  local frames = user_frames(traceback)
  for i = 1, math.min(#frames, 12) do io.stderr:write(frames[i], "\n") end
  os.exit(1, true)
end

local first = arg[1]
if first == nil or first == "-h" or first == "--help" then
  (first and io.stdout or io.stderr):write(USAGE)
  os.exit(first and 0 or 1, true)
end
if first == "-v" or first == "--version" then
  local ok, resin = pcall(require, "resin")
  if not ok then stop((tostring(resin):gsub("^resin: ", ""))) end
  print(resin.build_info())
  os.exit(0, true)
end

local chunk, problem
local shift = 1
if first == "-e" then
  if not arg[2] then stop("-e needs code") end
  chunk, problem = loadstring("local resin = require 'resin'; " .. arg[2], "=(command line)")
  shift = 2
elseif first:sub(1, 1) == "-" and first ~= "-" then
  stop("unknown option " .. first .. "\n" .. USAGE)
else
  local file = io.open(first, "r")
  if not file then stop("cannot open " .. first) end
  file:close()
  chunk, problem = loadfile(first)
end
if not chunk then stop(problem) end

-- arg as the plain interpreter would give it to the script.
local script = { [0] = first == "-e" and "-e" or first }
for i = shift + 1, #arg do script[#script + 1] = arg[i] end
arg = script      -- luacheck: ignore 121

local failure
local function handler(err)
  local check = package.loaded["resin.check"]
  local last = type(check) == "table" and check.last
  local message = type(err) == "string" and err or tostring(err)
  failure = { message, last and last.message == message and last.traceback or debug.traceback("", 2) }
end
local ok = xpcall(chunk, handler, unpack(script))
if not ok then report(failure[1], failure[2]) end

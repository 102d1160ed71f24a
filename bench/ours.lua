-- resin's side of the benchmark: a process that lives as long as one row. The commands are those of bench/peers.py:
--   build resin NAME DTYPE THREADS FILE [eager]    "ready DIFFERENCE MODE" (FILE "-": random weights and input, not compared)
--   run resin SECONDS                      "us MEDIAN LEAST CPU RUNS": microseconds of a run, processor seconds of all runs
--   memory                                 "kb PEAK" of this process
-- MODE is "program", or "eager" where that was asked for. What is timed is what a user would write.

package.path = arg[0]:match "^(.*)/" .. "/?.lua;" .. package.path
local resin = require "resin"
local workloads = require "models"

local time = resin.time

local run, known = nil, 0      -- what is timed, and the seconds that it took last
local eager = false            -- nothing is compiled

-- ---- a workload as a function ----------------------------------------------------------------------------------------------

local function compiled(fn, dtype)
  if eager then return fn end
  if dtype == "f32" then return resin.compile(fn) end
  return resin.compile(fn, { precision = dtype })
end

local function inference(model, x, dtype)
  model:eval()
  resin.set_grad_enabled(false)
  local forward = compiled(model, dtype)
  return function() return forward(x) end, forward
end

local function training(model, w, x, y, dtype)
  local opt = w.optimiser(model)
  local step = compiled(function(input, target)
    opt:zero_grad()
    local loss = w.loss((model(input)), target)
    loss:backward()
    opt:step()
    return loss
  end, dtype)
  return function() return step(x, y) end
end

-- ---- the result of PyTorch ------------------------------------------------------------------------------------------------

local function weights_in(file)
  local state = {}
  for name, tensor in pairs(file) do
    local own = name:match "^model%.(.+)"
    if own then state[own] = tensor end
  end
  return state
end

-- A step's losses after one and after three steps; otherwise what the run gives.
local function result(file, forward)
  if file.ids then return (forward(file.x, file.ids)):float() end
  if not file.y then return (run()):float() end
  local losses = {}
  for i = 1, 4 do losses[i] = run():item() end
  return resin.tensor { losses[2], losses[4] }
end

local function difference(got, want)
  local a, b = table.concat(got.shape, "x"), table.concat(want.shape, "x")
  if a ~= b then error(("the result is [%s], PyTorch's [%s]"):format(a, b), 0) end
  return (got - want):abs():max():item() / want:abs():max():item()
end

-- ---- commands -------------------------------------------------------------------------------------------------------------

local commands = {}

function commands.build(_, name, dtype, threads, path, mode)
  resin.set_num_threads(tonumber(threads))
  resin.manual_seed(1)
  local w = assert(workloads[name], "no workload " .. name)
  local model, forward = w.model(), nil
  local file = path == "-" and { x = w.x(), y = w.y and w.y() } or resin.load(path)
  if path ~= "-" then model:load_state_dict(weights_in(file)) end
  eager = mode == "eager" or w.run ~= nil
  if eager and dtype ~= "f32" then error("only programs have a precision", 0) end
  if w.run then
    run = w.run(model, file.x, file.y)
  elseif w.loss then
    run = training(model, w, file.x, file.y, dtype)
  else
    run, forward = inference(model, file.x, dtype)
  end
  local gap = path == "-" and 0 or difference(result(file, forward), file.result)
  return ("ready %.3g %s"):format(gap, eager and "eager" or "program")
end

function commands.run(_, seconds)
  seconds = tonumber(seconds)
  local once, count, cpu = known, 0, os.clock()
  if once < 0.1 then      -- warm up
    local begin = time()
    run()
    once, count = time() - begin, 1
  end
  local inner = math.max(1, math.floor(0.002 / once))
  local times, begin = {}, time()
  local last = begin
  repeat
    for _ = 1, inner do run() end
    local now = time()
    times[#times + 1] = (now - last) / inner
    last = now
  until last - begin >= seconds
  cpu = os.clock() - cpu
  local n = #times
  table.sort(times)
  known = (times[math.floor((n + 1) / 2)] + times[math.floor((n + 2) / 2)]) / 2
  return ("us %.6f %.6f %.4f %d"):format(known * 1e6, times[1] * 1e6, cpu, count + n * inner)
end

function commands.memory()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmHWM:%s+(%d+)"
    if kb then return "kb " .. kb end
  end
end

for line in io.lines() do
  local words = {}
  for word in line:gmatch "%S+" do words[#words + 1] = word end
  if words[1] == "quit" then break end
  local ok, answer = pcall(commands[words[1]], unpack(words, 2))
  if not ok then answer = "failed " .. tostring(answer):gsub("%s+", " ") end
  io.write(answer, "\n")
  io.flush()
end

-- The Lua half of compare.py: runs described models and writes what they computed.
--   build/resin spec/seeds/compare.lua FOLDER
-- For each k from FIRST to LAST (the arguments after FOLDER) FOLDER holds <k>.lua, which returns {model = function, options = function(t),
-- dtype, train}, and <k>.in.safetensors with state.*, input.* and upstream.<i>. <k>.lua sees nn, F, tensor and nothing else. Written
-- are <k>.out.safetensors with out.<i> (the result, then what layers returned beside it), grad.x, grad.<parameter> and
-- state.<buffer>, or <k>.error with the message. One line per model on standard output says how far it came.

local resin = require "resin"

local folder, first, last = arg[1], tonumber(arg[2]), tonumber(arg[3])

-- The tensors among the values that a model returned beside its result, in order, tables within tables too.
local function flatten(values, list)
  if resin.is_tensor(values) then
    list[#list + 1] = values
  elseif type(values) == "table" then
    for _, value in ipairs(values) do flatten(value, list) end
  end
  return list
end

-- The entries whose names begin with `prefix`, without it.
local function entries(file, prefix)
  local found = {}
  for name, tensor in pairs(file) do
    if name:sub(1, #prefix) == prefix then found[name:sub(#prefix + 1)] = tensor end
  end
  return found
end

local function loss_of(outputs, upstream)
  local loss
  for i, output in ipairs(outputs) do
    local g = upstream[tostring(i - 1)]
    if g then
      local part = (output * g):sum()
      loss = loss and loss + part or part
    end
  end
  return loss
end

local function run(path)
  local chunk = assert(loadfile(path .. ".lua"))
  setfenv(chunk, {nn = resin.nn, F = resin.F, tensor = resin.tensor})
  local case, file = chunk(), resin.load(path .. ".in.safetensors")
  local inputs, upstream = entries(file, "input."), entries(file, "upstream.")

  local model = case.model()
  if case.dtype ~= "f32" then model:to(case.dtype) end
  model:load_state_dict(entries(file, "state."))
  model:train(case.train)

  local x = inputs.x:requires_grad_(true)
  local y, more
  if case.options then y, more = model(x, case.options(inputs)) else y, more = model(x) end
  local outputs = flatten(more, {y})
  loss_of(outputs, upstream):backward()

  local out = {["grad.x"] = x.grad}
  for i, output in ipairs(outputs) do out["out." .. i - 1] = output:detach() end
  for name, tensor in pairs(model:state_dict()) do
    if tensor.requires_grad then out["grad." .. name] = tensor.grad else out["state." .. name] = tensor end
  end
  resin.save(path .. ".out.safetensors", out)
end

for k = first, last do
  local path = folder .. "/" .. k
  local ok, message = xpcall(run, function(e) return debug.traceback(tostring(e)) end, path)
  if not ok then
    local file = assert(io.open(path .. ".error", "w"))
    file:write(message)
    file:close()
  end
  io.write(k, ok and " ran\n" or " failed\n")
  io.flush()
end

-- Layers against PyTorch: every case of every file in spec/fixtures. What a file holds stands in make_fixtures.py, which writes it.

local resin = require "resin"

local OUTPUT, GRADIENT = 1e-5, 1e-4      -- allowed differences, relative to the largest element (at least 1)

local folder = debug.getinfo(1, "S").source:match("^@(.*)fixtures_spec%.lua$") .. "fixtures/"

local function files()
  local names = {}
  local pipe = assert(io.popen("ls '" .. folder .. "'"))
  for line in pipe:lines() do
    local name = line:match("^(.+)%.safetensors$")
    if name then names[#names + 1] = name end
  end
  pipe:close()
  return names
end

-- {case = {field = tensor}}, in the order of names
local function cases_of(tensors, meta)
  local cases, names = {}, {}
  for key in pairs(meta) do
    if not key:find(".", 1, true) then
      cases[key] = {}
      names[#names + 1] = key
    end
  end
  for key, tensor in pairs(tensors) do
    local case, field = key:match("^([^/]+)/(.+)$")
    cases[case][field] = tensor
  end
  table.sort(names)
  return cases, names
end

-- The value of a Lua expression that sees resin.nn, and what is given.
local function evaluate(text, environment)
  local chunk = assert(loadstring("return " .. text, "=" .. text))
  return setfenv(chunk, setmetatable(environment, {__index = resin.nn}))()
end

-- The tensors of results, which may be nested, in their order.
local function flatten(list, value)
  if resin.is_tensor(value) then
    list[#list + 1] = value
  elseif type(value) == "table" then
    for i = 1, #value do flatten(list, value[i]) end
  end
  return list
end

local function agree(what, expected, got, tolerance)
  if not got then error(what .. ": nothing came out", 0) end
  assert.same(expected.shape, got.shape, what)
  local a, b = expected:detach():to("f64"):reshape(-1):totable(), got:detach():to("f64"):reshape(-1):totable()
  local largest = 1
  for i = 1, #a do largest = math.max(largest, math.abs(a[i])) end
  for i = 1, #a do
    local difference = math.abs(a[i] - b[i])
    if difference ~= difference or difference > tolerance * largest then
      error(("%s: element %d is %.9g, in PyTorch %.9g"):format(what, i, b[i], a[i]), 0)
    end
  end
end

local function numbered(case, prefix)
  local list = {}
  while case[prefix .. (#list + 1)] do list[#list + 1] = case[prefix .. (#list + 1)] end
  return list
end

local function fields(case, prefix)
  local found = {}
  for key, tensor in pairs(case) do
    local name = key:match("^" .. prefix .. "%.(.+)$")
    if name then found[name] = tensor end
  end
  return found
end

-- Upstream gradients enter through a sum of products, so that several results are one call of backward.
local function run_backward(case, outputs)
  local total
  for i, y in ipairs(outputs) do
    local upstream = case["gout." .. i]
    if upstream then
      local part = (y * upstream):sum()
      total = total and total + part or part
    end
  end
  if total then total:backward() end
end

-- The declared output shape, where one is declared for a single input.
local function check_shape(m, inputs, outputs)
  if m.output_shape == resin.nn.Module.output_shape or #inputs ~= 1 or #outputs ~= 1 then return end
  assert.same(outputs[1].shape, m:output_shape(inputs[1].shape), "output_shape")
end

local function check_case(name, case, meta)
  local m = evaluate(meta[name], {nn = resin.nn, resin = resin})
  m:load_state_dict(fields(case, "state"))
  if meta[name .. ".mode"] == "eval" then m:eval() end

  local inputs, x = numbered(case, "in."), {}
  for i, t in ipairs(inputs) do
    if case["gin." .. i] then t:requires_grad_(true) end
    x[i] = case["gin." .. i] and t:clone() or t          -- an in-place layer may not write a leaf
  end
  local call = meta[name .. ".call"] or "m(unpack(x))"
  local outputs = flatten({}, {evaluate(call, {m = m, x = x, unpack = unpack})})
  local expected = numbered(case, "out.")
  assert.equal(#expected, #outputs, "results")
  for i, y in ipairs(expected) do agree("result " .. i, y, outputs[i], OUTPUT) end
  if not meta[name .. ".call"] then check_shape(m, inputs, outputs) end

  run_backward(case, outputs)
  for i, t in ipairs(inputs) do
    local wanted = case["gin." .. i]
    if wanted then agree("gradient of input " .. i, wanted, t.grad, GRADIENT) end
  end
  local parameters = {}
  for parameter, tensor in m:named_parameters() do parameters[parameter] = tensor end
  for parameter, wanted in pairs(fields(case, "grad")) do
    agree("gradient of " .. parameter, wanted, parameters[parameter] and parameters[parameter].grad, GRADIENT)
  end
  local state = m:state_dict()
  for key, wanted in pairs(fields(case, "after")) do agree(key .. " afterwards", wanted, state[key], OUTPUT) end
end

for _, file in ipairs(files()) do
  describe("PyTorch, " .. file, function()
    local tensors, meta = resin.load(folder .. file .. ".safetensors", {metadata = true})
    local cases, names = cases_of(tensors, meta)
    for _, name in ipairs(names) do
      it(meta[name] .. (meta[name .. ".mode"] and ", eval" or "") .. " [" .. name .. "]", function()
        check_case(name, cases[name], meta)
      end)
    end
  end)
end

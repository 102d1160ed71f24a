-- Residual blocks, from one skip to a small network. Run it with: build/resin examples/residual_blocks.lua

local resin = require "resin"
local nn = resin.nn
local ResidualSequential, Record, Apply = nn.ResidualSequential, nn.Record, nn.Apply

local function show(title, model, ...)
  local y = model(resin.randn(...))
  print(title)
  print(model)
  print(("[%s] -> [%s]\n"):format(table.concat({...}, ", "), table.concat(y.shape, ", ")))
end

resin.manual_seed(1)

-- A Record marks a value, an Apply adds it again. Nothing else is needed.
show("One skip", ResidualSequential(
  Record("input"),
  nn.Linear(64, 64),
  nn.ReLU(),
  nn.LayerNorm(64),
  Apply{record_name = "input"}
), 8, 64)

-- Where the shapes differ, the recorded value is projected. The projection exists at once: an optimiser finds it.
show("A skip that changes the width", ResidualSequential(
  Record{name = "r", need_projection = true},
  nn.Linear(64, 128),
  nn.ReLU(),
  Apply{record_name = "r"}
), 8, 64)

show("A long and a short skip", ResidualSequential(
  Record{name = "input", need_projection = true},
  nn.Linear(64, 32),
  nn.ReLU(),
  Record{name = "mid"},
  nn.Linear(32, 64),
  Apply{record_name = "input"},
  nn.LayerNorm(64),
  nn.Linear(64, 32),
  Apply{record_name = "mid"}
), 8, 64)

-- Other ways to combine: a learned mixture, and gates.
show("A gate with a learned factor, then a highway", ResidualSequential(
  Record("r"),
  nn.Linear(16, 16),
  Apply{record_name = "r", operation = "gated", alpha = nn.LearnableAlpha(0.3, {min_value = 0, max_value = 1})},
  Record("h"),
  nn.Linear(16, 16),
  Apply{record_name = "h", operation = "highway"}
), 4, 16)

-- Containers nest; children may have names; an inner container reads an outer Record by its name
-- (outer = true says that it is one: without it a name that is not there yet is warned of).
show("Nested", ResidualSequential{
  {"keep", Record("far")},
  {"inner", ResidualSequential(Record(), nn.Linear(32, 32), nn.GELU(), Apply(),
    Apply{record_name = "far", outer = true})},
  {"head", nn.Linear(32, 32)},
  {"join", Apply("add", "far", 0.5)},
}, 4, 32)

-- After convolutions a skip goes along the channels: 1x1 convolutions project, concat joins channels.
show("Convolutions", ResidualSequential(
  Record{name = "input", need_projection = true},
  nn.Conv2d(3, 16, 3, {stride = 2, padding = 1}),
  nn.BatchNorm2d(16),
  nn.ReLU(),
  Record("mid"),
  nn.Conv2d(16, 16, 3, {padding = 1}),
  Apply{record_name = "input"},
  nn.Conv2d(16, 8, 1),
  Apply{record_name = "mid", operation = "concat"}
), 2, 3, 32, 32)

-- Any function of (current, saved) combines too, and so does a name given to one.
nn.register("focus", {formula = "x * sigmoid(r)", run = function(current, saved) return current * saved:sigmoid() end})
show("An operation of one's own", ResidualSequential(
  Record(),
  nn.Linear(8, 8),
  Apply("focus"),
  Apply{operation = function(current, saved) return current - saved:mean() end}
), 2, 8)

-- Ten blocks whose branches start at zero (ReZero) train at once, however deep the stack is.
local deep = ResidualSequential()
for _ = 1, 10 do
  deep:append(Record()):append(nn.Linear(16, 16)):append(nn.Tanh()):append(Apply{scale = nn.Parameter(resin.zeros(1))})
end
local optimiser = resin.optim.Adam(deep, {lr = 0.02})
local x, target = resin.randn(64, 16), resin.randn(64, 16)
local loss_of = nn.MSELoss()
for step = 1, 100 do
  optimiser:zero_grad()
  local loss = loss_of(deep(x), target)
  loss:backward()
  optimiser:step()
  if step % 25 == 0 then print(("ReZero, step %3d: loss %.4f"):format(step, loss:item())) end
end

-- What does not fit is said where it is written.
local ok, message = pcall(ResidualSequential, Record("input"), nn.Linear(64, 32), Apply("add", "input"))
assert(not ok)
print("\n" .. message)

-- Fusion passes of programs: the same results with and without them, and what they make of a program.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local C = lib.C
local nn, F, optim = resin.nn, resin.F, resin.optim

local FUSION = { "ssa", "clean", "casts", "join", "linear", "norm", "chains", "hoist" }

-- How often each op stands in the program that was recorded last.
local function ops_of(compiled)
  local program, info, count = compiled.entries[1].program, ffi.new "rs_instruction_info", {}
  for i = 0, C.rs_program_length(program) - 1 do
    assert(C.rs_program_instruction(program, i, info) == 0)
    if info.kernel ~= nil then
      local name = ffi.string(info.op)
      count[name] = (count[name] or 0) + 1
    end
  end
  return count
end

local function difference(a, b)
  assert.same(a.shape, b.shape)
  assert.equal(a.dtype, b.dtype)
  if a:numel() == 0 then return 0 end
  return (a:double() - b:double()):abs():max():item()
end

-- Runs fn as it is, and as a program without and with fusion; results must agree to `tolerance` (0: equal). Gives both counts of ops.
local function check(fn, args, tolerance)
  local plain, fused = resin.compile(fn, { passes = false }), resin.compile(fn, { passes = FUSION })
  for _ = 1, 3 do
    local want, a, b = { fn(unpack(args)) }, { plain(unpack(args)) }, { fused(unpack(args)) }
    for i = 1, #want do
      assert.is_true(difference(a[i], b[i]) <= (tolerance or 0), "with and without fusion: " .. difference(a[i], b[i]))
      assert.is_true(difference(want[i], b[i]) <= (tolerance or 0), "eager and fused: " .. difference(want[i], b[i]))
    end
  end
  return ops_of(fused), ops_of(plain)
end

-- A training step of two equal models, one with fusion: losses and parameters after some steps.
local function check_training(make, loss_of, x, y, tolerance)
  local results = {}
  local counts
  for i, passes in ipairs { false, FUSION } do
    resin.manual_seed(11)
    local model = make()
    local opt = optim.Adam(model, { lr = 1e-2 })
    local step = resin.compile(function(input, target)
      opt:zero_grad()
      local loss = loss_of(model(input), target)
      loss:backward()
      opt:step()
      return loss
    end, { passes = passes })
    local list = {}
    for k = 1, 6 do list[k] = step(x, y):item() end
    for _, p in model:named_parameters() do list[#list + 1] = p:detach() end
    results[i] = list
    counts = ops_of(step)
  end
  for k, value in ipairs(results[1]) do
    local other = results[2][k]
    if type(value) == "number" then assert.is_true(math.abs(value - other) <= tolerance)
    else assert.is_true(difference(value, other) <= tolerance) end
  end
  return counts
end

describe("chains", function()
  local x, y = resin.randn(30, 700), resin.randn(30, 700)
  local row, column = resin.randn(700), resin.randn(30, 1)

  it("become one instruction, bit for bit", function()
    local ops = check(function(a, b)
      local t = (a * 2 + b):tanh()
      t = t * a - 0.5
      return t:relu() + t:sigmoid()
    end, { x, y })
    assert.same({ fused = 1 }, ops)
  end)

  it("give what is wanted inside of them too", function()
    local ops = check(function(a, b)
      local t = a * b
      local u = t:exp()
      return u + 1, t
    end, { x, y })
    assert.same({ fused_many = 1 }, ops)
  end)

  it("take rows, columns, numbers and numbers of activations", function()
    local ops = check(function(a)
      local t = ((a + row) * column):silu() - row
      return F.elu(t:clamp(-1, 2), 1.5):pow(2)
    end, { x })
    assert.same({ fused = 1 }, ops)
  end)

  it("take conditions and other dtypes", function()
    local ops = check(function(a, b) return a:gt(0.2):where(a * 2, b:exp()) end, { x, y })
    assert.same({ fused = 1 }, ops)
    ops = check(function(a) return (a:double() * 2 + 1):exp():float() end, { x })
    assert.same({ fused = 1 }, ops)
    ops = check(function(a)
      local h = a:to "bf16"
      return ((h * 2 + h):tanh()):float()
    end, { x })
    assert.same({ fused = 1 }, ops)
  end)

  it("leave alone what is read, or written, in between", function()
    check(function(a, b)
      local t = a + b
      t:mul_(2)
      local s = t:relu()
      t:add_(1)
      return s * t, t
    end, { x, y })
    local buffer = resin.zeros(30, 700)
    check(function(a)
      local t = buffer + a
      buffer:add_(1)
      local r = t:relu()
      buffer:mul_(0)
      return r, buffer * 1
    end, { x })
    check(function(a, b)
      local t = a + b
      local view = t:narrow(1, 1, 10)
      t:mul_(2)
      local s = view:relu()
      t:add_(1)
      return s * 2, t
    end, { x, y })
    check(function(a, b)
      local t = (a + b):relu()
      local view = t:transpose(1, 2)
      return view:contiguous(), t * 2
    end, { x, y })
  end)

  it("are cut where they are too long", function()
    local ops = check(function(a, b)
      local list = {}
      for i = 1, 9 do list[i] = (a * i + b):sin() end
      local s = list[1]
      for i = 2, 9 do s = s + list[i] end
      return s, list[3], list[5]
    end, { x, y })
    assert.is_true((ops.fused or 0) + (ops.fused_many or 0) >= 2)
  end)

  it("work on empty, tiny and 0-d tensors", function()
    for _, shape in ipairs { { 0, 3 }, { 1 }, { 2, 3 } } do
      check(function(a) return ((a + 1):relu() * 3):exp() end, { resin.randn(shape) })
    end
    check(function(a) return ((a + 1):relu() * 3):exp() end, { resin.tensor(0.4) })
  end)

  it("keep gradients", function()
    local w = resin.randn(700):requires_grad_()
    check(function(a, b)
      w.grad = nil
      local loss = ((a * w + b):gelu():square() * 0.1):mean()
      loss:backward()
      return loss, w.grad
    end, { x, y })
  end)

  it("are the same on two threads", function()
    local big, other = resin.randn(300, 999), resin.randn(300, 999)
    local fn = resin.compile(function(a, b) return ((a + b) * 0.5 - a):relu() * 3 + row:narrow(1, 1, 1) end, { passes = FUSION })
    fn(big, other)
    local one = fn(big, other)
    local before = resin.get_num_threads()
    resin.set_num_threads(2)
    local two = fn(big, other)
    resin.set_num_threads(before)
    assert.equal(0, difference(one, two))
  end)
end)

describe("linear maps", function()
  local x = resin.randn(12, 40)

  it("take the activation and the sum that follow", function()
    local w, b, r = resin.randn(24, 40), resin.randn(24), resin.randn(12, 24)
    for _, act in ipairs { "relu", "gelu", "tanh", "sigmoid", "silu" } do
      local ops = check(function(a, res) return F[act](F.linear(a, w, b)) + res end, { x, r }, 2e-6)
      assert.equal(1, ops.linear_act)
      assert.is_nil(ops.linear)
      assert.is_nil(ops.add)
    end
    local ops = check(function(a, res) return res + F.linear(a, w) end, { x, r }, 2e-6)
    assert.equal(1, ops.linear_act)
  end)

  it("keep what else is read", function()
    local w, b = resin.randn(24, 40), resin.randn(24)
    local ops = check(function(a)
      local y = F.linear(a, w, b)
      return y:relu(), y
    end, { x }, 2e-6)
    assert.equal(1, ops.relu)
  end)

  it("pack a weight that stays, and again when it changed", function()
    local model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 7))
    model:eval()
    local fused = resin.compile(model, { passes = FUSION })
    resin.no_grad(function()
      assert.is_true(difference(model(x), fused(x)) < 1e-5)
      assert.equal(2, ops_of(fused).linear_pack)
      model[1].weight:mul_(2)
      assert.is_true(difference(model(x), fused(x)) < 1e-5)
    end)
  end)

  it("in training: products take the sum that follows", function()
    local counts = check_training(function()
      return nn.Sequential(nn.Linear(40, 32), nn.Residual { nn.Linear(32, 32), nn.Tanh() }, nn.Linear(32, 5))
    end, F.cross_entropy, x, resin.randint(1, 5, { 12 }), 2e-5)
    assert.equal(1, counts.matmul_add)
    assert.equal(1, counts.linear_act)
  end)
end)

describe("a weight that is used twice", function()
  it("has a gradient that grows where it lies", function()
    local x, w = resin.randn(6, 20), resin.randn(20, 20):requires_grad_()
    local ops = check(function(a)
      w.grad = nil
      local loss = F.linear(F.linear(a, w):tanh(), w):square():sum()
      loss:backward()
      return loss, w.grad
    end, { x }, 2e-3)
    assert.equal(1, ops.matmul_acc)
    ops = check(function(a, b)
      w.grad = nil
      F.linear(a, w):square():sum():backward()
      F.linear(b, w):square():sum():backward()
      return w.grad
    end, { x, resin.randn(6, 20) }, 1e-3)
    assert.equal(1, ops.matmul_acc)
  end)
end)

describe("layer norm", function()
  local x, r = resin.randn(9, 48), resin.randn(9, 48)
  local w, b = resin.randn(48), resin.randn(48)

  it("takes the sum before or after it, bit for bit", function()
    local ops = check(function(a, c)
      local s = a + c
      return F.layer_norm(s, w, b, 48), s
    end, { x, r })
    assert.same({ layer_norm_sum = 1 }, ops)
    ops = check(function(a, c) return F.layer_norm(a, w, b, 48) + c end, { x, r })
    assert.same({ layer_norm_sum = 1 }, ops)
  end)

  it("takes the ReLU and the sum behind its gradient", function()
    local counts = check_training(function()
      local block = nn.Residual { nn.LayerNorm(32), nn.Linear(32, 32) }
      return nn.Sequential(nn.Linear(48, 32), block, nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 5))
    end, F.cross_entropy, x, resin.randint(1, 5, { 9 }), 2e-5)
    assert.equal(2, counts.layer_norm_backward_sum)
    assert.is_nil(counts.relu_backward)
  end)
end)

describe("gradients of parts", function()
  it("are put behind each other", function()
    local x, w = resin.randn(2, 5, 8), resin.randn(24, 8):requires_grad_()
    local function heads(t) return t:reshape(2, 5, 2, 4):permute(1, 3, 2, 4) end
    local ops = check(function(a)
      w.grad = nil
      local all = F.linear(a, w)
      local q, k, v = all:narrow(3, 1, 8), all:narrow(3, 9, 8), all:narrow(3, 17, 8)
      local loss = F.scaled_dot_product_attention(heads(q), heads(k), heads(v)):square():sum()
      loss:backward()
      return loss, w.grad
    end, { x }, 1e-5)
    assert.equal(1, ops.cat_views)
    assert.is_nil(ops.narrow_backward)
  end)

  it("are added when they overlap or leave a gap", function()
    local x = resin.randn(4, 10):requires_grad_()
    for _, starts in ipairs { { 1, 4 }, { 1, 6 }, { 6, 1 } } do
      check(function(a)
        x.grad = nil
        local loss = (x:narrow(2, starts[1], 5) * a):exp():sum() + x:narrow(2, starts[2], 5):square():sum()
        loss:backward()
        return loss, x.grad
      end, { resin.randn(4, 5) }, 1e-6)
    end
  end)
end)

describe("casts", function()
  it("there and back are left out, where nothing was lost", function()
    local x = resin.randn(7, 33)
    local ops = check(function(a) return a:double():float():exp() end, { x })
    assert.same({ exp = 1 }, ops)
    ops = check(function(a) return a:to("bf16"):float():sum() end, { x })
    assert.same({ cast = 2, sum = 1 }, { cast = ops.cast or 2 * (ops.fused or 0), sum = ops.sum })
    ops = check(function(a)
      local wide = a:double()
      return wide:float():transpose(1, 2) * 2, wide:sum()
    end, { x })
    assert.equal(1, ops.cast)
  end)
end)

describe("models", function()
  it("train the same with all passes", function()
    local counts = check_training(function()
      local net = nn.Sequential()
      for _ = 1, 3 do net:append(nn.Residual { nn.Linear(16, 16), nn.ReLU(), nn.LayerNorm(16) }) end
      return net:append(nn.Linear(16, 4))
    end, F.cross_entropy, resin.randn(8, 16), resin.randint(1, 4, { 8 }), 2e-5)
    assert.equal(3, counts.layer_norm_sum)
    assert.equal(3, counts.layer_norm_backward_sum)
    assert.equal(3, counts.linear_act)
  end)

  it("a small transformer trains the same", function()
    local make = function() return resin.models.gpt(11, { size = 16, layers = 2, heads = 2, max_length = 12, dropout = 0 }) end
    local ids, target = resin.randint(1, 11, { 3, 12 }), resin.randint(1, 11, { 3, 12 })
    local loss_of = function(scores, t) return F.cross_entropy(scores:flatten(1, 2), t:flatten()) end
    local counts = check_training(make, loss_of, ids, target, 5e-5)
    assert.equal(2, counts.cat_views)
  end)
end)

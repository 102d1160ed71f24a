-- The residual systems against reference numbers: spec/golden/residual.lua says how they were made.

local resin = require "resin"
local nn = resin.nn
local golden = dofile("spec/golden/residual.lua")
local LearnableAlpha = nn.LearnableAlpha

-- fill(s)[k] = ((k·7919 + s·104729) mod 1000)/1000 - 0.5, k from 0
local function fill(seed, shape, scale)
  local n, values = 1, {}
  for _, size in ipairs(shape) do n = n * size end
  for k = 0, n - 1 do values[k + 1] = ((k * 7919 + seed * 104729) % 1000 / 1000 - 0.5) * (scale or 1) end
  return resin.tensor(values):reshape(shape)
end

local function stored(t) return resin.tensor(t.data):reshape(t.shape) end

local function close(expected, actual, tolerance, what)
  assert.same(expected.shape, actual.shape)
  local flat = actual:reshape(-1):totable()
  for i, value in ipairs(expected.data) do
    assert.is_true(math.abs(value - flat[i]) <= tolerance,
      ("%s, element %d: expected %.9g, got %.9g"):format(what, i, value, flat[i]))
  end
end

-- A Linear that holds the stored tensors.
local function linear(weight, bias)
  local layer = nn.Linear(weight.shape[2], weight.shape[1])
  resin.no_grad(function()
    layer.weight:copy_(stored(weight))
    layer.bias:copy_(stored(bias))
  end)
  return layer
end

local function load(layer, weight, bias)
  resin.no_grad(function()
    layer.weight:copy_(stored(weight))
    layer.bias:copy_(stored(bias))
  end)
end

-- Runs model on the case's x, goes back from the upstream gradient, and compares. tensors: {leaf name → tensor with the gradient}.
local function compare(name, model, tensors)
  local case = golden[name]
  local x = stored(case.leaves.x):requires_grad_(true)
  local y = model(x)
  close(case.out, y, 1e-5, name .. ": output")
  y:backward(fill(99, case.out.shape))
  tensors.x = x
  for leaf, expected in pairs(case.grads) do
    assert.is_truthy(tensors[leaf], name .. " has no tensor for the leaf " .. leaf)
    close(expected, tensors[leaf].grad, 1e-4, name .. ": gradient of " .. leaf)
  end
end

local function one_skip(name, apply)
  local case = golden[name]
  local layer = linear(case.leaves.W, case.leaves.b)
  compare(name, nn.ResidualSequential(nn.Record("r"), layer, apply), {W = layer.weight, b = layer.bias})
end

describe("golden numbers of ResidualSequential", function()
  it("add, with a factor of the skip", function()
    one_skip("add_a1", nn.Apply{record_name = "r"})
    one_skip("add_a0.5", nn.Apply{record_name = "r", alpha = 0.5})
  end)

  it("multiply", function() one_skip("multiply_a0.5", nn.Apply("multiply", "r", 0.5)) end)
  it("gated", function() one_skip("gated_a0.3", nn.Apply("gated", "r", 0.3)) end)
  it("concat", function() one_skip("concat", nn.Apply("concat", "r")) end)
  it("subtract: f(current, saved) = current - saved", function()
    one_skip("circuit_sub_order", nn.Apply("subtract", "r"))
    one_skip("circuit_sub_order", nn.Apply{operation = function(current, saved) return current - saved end, record_name = "r"})
  end)

  it("Circuit: a block of three repeats with one set of weights", function()
    local leaves = golden.circuit_repeat3_shared.leaves
    local layer = linear(leaves.W, leaves.b)
    compare("circuit_repeat3_shared", nn.Circuit(nn.StartBlock("block", 3), nn.SaveInput("r"), layer, nn.ReLU(), nn.GetInput("r"),
      nn.EndBlock("block")), {W = layer.weight, b = layer.bias})
  end)

  it("Circuit: op(current, saved)", function()
    local leaves = golden.circuit_sub_order.leaves
    for _, op in ipairs{"sub", resin.F.sub, function(current, saved) return current - saved end} do
      local layer = linear(leaves.W, leaves.b)
      compare("circuit_sub_order", nn.Circuit(nn.SaveInput("r"), layer, nn.GetInput("r", {op = op})),
        {W = layer.weight, b = layer.bias})
    end
  end)

  it("highway", function()
    local leaves = golden.highway.leaves
    local layer = linear(leaves.W, leaves.b)
    local apply = nn.Apply("HIGHWAY", "r")
    local model = nn.ResidualSequential(nn.Record("r"), layer, apply)
    local T, C = apply.gate_layer.transform_gate, apply.gate_layer.carry_gate
    load(T, leaves.Wt, leaves.bt)
    load(C, leaves.Wc, leaves.bc)
    compare("highway", model, {W = layer.weight, b = layer.bias, Wt = T.weight, bt = T.bias, Wc = C.weight, bc = C.bias})
  end)

  it("add with a projection", function()
    local leaves = golden.add_projection.leaves
    local layer = linear(leaves.W, leaves.b)
    local apply = nn.Apply{record_name = "r"}
    local model = nn.ResidualSequential(nn.Record{name = "r", need_projection = true}, layer, apply)
    load(apply.projection_layer, leaves.Wp, leaves.bp)
    local p = apply.projection_layer
    compare("add_projection", model, {W = layer.weight, b = layer.bias, Wp = p.weight, bp = p.bias})
  end)

  it("one record for two applies", function()
    local leaves = golden.one_record_two_applies.leaves
    local first, second = linear(leaves.W1, leaves.b1), linear(leaves.W2, leaves.b2)
    local model = nn.ResidualSequential(nn.Record("r"), first, nn.Apply{record_name = "r"}, second, nn.Apply{record_name = "r"})
    compare("one_record_two_applies", model, {W1 = first.weight, b1 = first.bias, W2 = second.weight, b2 = second.bias})
  end)

  it("two records", function()
    local leaves = golden.two_records.leaves
    local first, second = linear(leaves.W1, leaves.b1), linear(leaves.W2, leaves.b2)
    local model = nn.ResidualSequential(nn.Record("r1"), first, nn.Record("r2"), second, nn.Apply{record_name = "r1"},
      nn.Apply("multiply", "r2"))
    compare("two_records", model, {W1 = first.weight, b1 = first.bias, W2 = second.weight, b2 = second.bias})
  end)

  it("gated with a LearnableAlpha", function()
    local leaves = golden.gated_learnable_alpha.leaves
    local layer, alpha = linear(leaves.W, leaves.b), LearnableAlpha(0.3, 0, 1)
    local model = nn.ResidualSequential(nn.Record("r"), layer, nn.Apply("gated", "r", alpha))
    compare("gated_learnable_alpha", model, {W = layer.weight, b = layer.bias, p = alpha.param})
  end)

  it("a GRU with a skip around it", function()
    local leaves = golden.gru_residual.leaves
    local gru = nn.GRU(4, 4, {batch_first = true})
    gru:load_state_dict{weight_ih_l0 = stored(leaves.Wih), weight_hh_l0 = stored(leaves.Whh), bias_ih_l0 = stored(leaves.bih),
      bias_hh_l0 = stored(leaves.bhh)}
    compare("gru_residual", nn.ResidualSequential(nn.Record("r"), nn.RecurrentWrapper(gru), nn.Apply{record_name = "r"}),
      {Wih = gru.weight_ih_l0, Whh = gru.weight_hh_l0, bih = gru.bias_ih_l0, bhh = gru.bias_hh_l0})
  end)

  it("self-attention with a skip and a layer norm behind", function()
    local leaves = golden.mha_residual_layernorm.leaves
    local attention = nn.MultiheadAttention(8, 2)
    attention:load_state_dict{in_proj_weight = stored(leaves.Wi), in_proj_bias = stored(leaves.bi), ["out_proj.weight"] = stored(leaves.Wo),
      ["out_proj.bias"] = stored(leaves.bo)}
    local out = attention.out_proj
    compare("mha_residual_layernorm",
      nn.ResidualSequential(nn.Record("r"), attention, nn.Apply{record_name = "r"}, nn.LayerNorm(8)),
      {Wi = attention.in_proj_weight, bi = attention.in_proj_bias, Wo = out.weight, bo = out.bias})
  end)

  it("LearnableAlpha: parameter, value and derivative; an initial value out of range is an error", function()
    for i, row in ipairs(golden.learnable_alpha_table) do
      local options = {min_value = row.min, max_value = row.max, use_log_space = row.use_log_space}
      if row.init < row.min or row.init > row.max then
        local ok, message = pcall(LearnableAlpha, row.init, options)
        assert.is_false(ok)
        assert.is_truthy(message:find("LearnableAlpha: initial_value must be a number from 0 to 1, got number", 1, true), message)
      else
        local alpha = LearnableAlpha(row.init, options)
        local value = alpha()
        value:backward()
        local what = "row " .. i
        assert.is_near(row.param, alpha.param:item(), 1e-5, what)
        assert.is_near(row.value, value:item(), 1e-5, what)
        assert.is_near(row.dvalue_dparam, alpha.param.grad:item(), 1e-4 * math.max(1, row.dvalue_dparam), what)
        assert.equal(row.log, alpha.use_log:item(), what)
      end
    end
  end)

  it("the guide's network: a projected skip around every layer", function()
    local case, sizes = golden.guide_use_True, {128, 64, 32, 16, 8, 1}
    local model = nn.ResidualSequential()
    for i = 1, 5 do
      model:append(nn.Record{need_projection = true}):append(nn.Linear(sizes[i], sizes[i + 1])):append(nn.GELU()):append(nn.Apply())
    end
    for i = 0, 4 do
      local layer, projection = model[4 * i + 2], model[4 * i + 4].projection_layer
      local k = 2 / math.sqrt(sizes[i + 1])
      resin.no_grad(function()
        for offset, l in pairs{[70] = layer, [170] = projection} do
          l.weight:copy_(fill(offset + 2 * i, l.weight.shape, k))
          l.bias:copy_(fill(offset + 1 + 2 * i, l.bias.shape, k))
        end
      end)
    end
    assert.equal(golden.counts.guide_residual, model:num_parameters())
    local y = model(fill(3, {10, 128}, 2))
    close(case.out, y, 1e-5, "guide: output")
    local loss = nn.MSELoss()(y, resin.zeros(10, 1))
    assert.is_near(case.loss, loss:item(), 1e-6)
    loss:backward()
    for i = 1, 5 do
      assert.is_near(case.grad_mean_layers[i], model[4 * i - 2].weight.grad:abs():mean():item(), 1e-5)
      assert.is_near(case.grad_mean_projections[i], model[4 * i].projection_layer.weight.grad:abs():mean():item(), 1e-5)
    end
  end)
end)

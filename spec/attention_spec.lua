-- Scaled dot-product attention, nn.MultiheadAttention, nn.TransformerEncoderLayer. Numbers against PyTorch are in spec/fixtures.

local resin = require "resin"
local lib = require "resin.lib"
local nn, F = resin.nn, resin.F
local attention = F.scaled_dot_product_attention

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function largest(a, b)
  assert.same(a.shape, b.shape)
  return (a:detach() - b:detach()):abs():max():item()
end
local function equal(a, b, tolerance) assert.is_true(largest(a, b) <= (tolerance or 2e-6), "differs by " .. largest(a, b)) end

local function randn(...) return resin.randn({...}, {dtype = "f64"}) end

-- The formula, with the matrix of weights. mask: floats that are added, or nil.
local function plain(q, k, v, mask, scale)
  local scores = q:matmul(k:transpose(-2, -1)) * (scale or 1 / math.sqrt(q.shape[q.ndim]))
  if mask then scores = scores + mask end
  return scores:softmax(-1):matmul(v)
end

local function after(rows, columns)     -- -inf for columns after the row
  local i, j = resin.arange(rows):reshape(rows, 1), resin.arange(columns):reshape(1, columns)
  return resin.where(j:gt(i), -math.huge, 0):to("f64")
end

-- Output and gradients of fn for the given leaves.
local function run(fn, leaves, g)
  for _, t in ipairs(leaves) do t.grad = nil; t:requires_grad_(true) end
  local y = fn()
  y:backward(g)
  local out = {y}
  for _, t in ipairs(leaves) do out[#out + 1] = t.grad end
  return out
end

local function same_with_gradients(a, b, leaves, tolerance)
  local g = randn(unpack(a().shape)):to(leaves[1].dtype)
  local first, second = run(a, leaves, g), run(b, leaves, g)
  for i = 1, #first do equal(first[i], second[i], tolerance or 1e-10) end
end

describe("scaled_dot_product_attention", function()
  before_each(function() resin.manual_seed(3) end)

  it("is its formula, in one block of columns or several", function()
    for _, s in ipairs{{5, 7}, {64, 64}, {70, 300}, {130, 520}, {9, 900}, {1, 600}} do
      local q, k, v = randn(2, s[1], 8), randn(2, s[2], 8), randn(2, s[2], 6)
      same_with_gradients(function() return attention(q, k, v) end, function() return plain(q, k, v) end, {q, k, v})
    end
  end)

  it("takes masks that are added, and their gradient", function()
    local q, k, v = randn(2, 3, 70, 8), randn(2, 3, 300, 8), randn(2, 3, 300, 8)
    for _, m in ipairs{randn(70, 300), randn(2, 1, 1, 300), randn(3, 70, 1), randn(2, 3, 70, 300)} do
      same_with_gradients(function() return attention(q, k, v, m, {scale = 0.3}) end, function() return plain(q, k, v, m, 0.3) end,
        {q, k, v, m})
    end
  end)

  it("takes bool masks, in which true takes part", function()
    local q, k, v = randn(2, 6, 8), randn(2, 300, 8), randn(2, 300, 8)
    local m = resin.rand(6, 300):gt(0.4)
    local added = resin.where(m, 0, -math.huge):to("f64")
    same_with_gradients(function() return attention(q, k, v, m) end, function() return plain(q, k, v, added) end, {q, k, v})
  end)

  it("is causal, with another mask too", function()
    for _, s in ipairs{{5, 5}, {200, 200}, {90, 700}, {700, 90}} do
      local q, k, v = randn(2, s[1], 8), randn(2, s[2], 8), randn(2, s[2], 8)
      local later, m = after(s[1], s[2]), randn(s[1], s[2])
      same_with_gradients(function() return attention(q, k, v, {is_causal = true}) end,
        function() return plain(q, k, v, later) end, {q, k, v})
      same_with_gradients(function() return attention(q, k, v, m, {is_causal = true}) end,
        function() return plain(q, k, v, m + later) end, {q, k, v, m})
    end
  end)

  it("gives zeros, and no gradient, for a row that takes nothing", function()
    local q, k, v = randn(3, 4), randn(5, 4), randn(5, 4)
    local m = resin.tensor{{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, {0, 1, 0, 0, 0}}:gt(0.5)
    local out = run(function() return attention(q, k, v, m) end, {q, k, v}, randn(3, 4))
    assert.equal(0, out[1][2]:detach():abs():max():item())
    assert.equal(0, out[2][2]:abs():max():item())
    equal(v[2], out[1][3], 1e-12)
    for i = 1, 4 do assert.is_true(out[i]:detach():isfinite():all():item()) end
  end)

  it("repeats leading dimensions, and reads views", function()
    local q, k, v = randn(2, 6, 5, 4), randn(2, 1, 7, 4), randn(1, 1, 7, 4)
    same_with_gradients(function() return attention(q, k, v) end, function() return plain(q, k, v) end, {q, k, v})
    local a, b = randn(5, 2, 3, 4), randn(3, 2, 4, 9)
    same_with_gradients(function() return attention(a:permute(2, 3, 1, 4), b:permute(2, 1, 4, 3), b:permute(2, 1, 4, 3)) end,
      function() return plain(a:permute(2, 3, 1, 4), b:permute(2, 1, 4, 3), b:permute(2, 1, 4, 3)) end, {a, b})
  end)

  it("gives in f32 and bf16 what it gives in f64", function()
    local q, k, v = randn(3, 90, 16), randn(3, 600, 16), randn(3, 600, 16)
    for dtype, tolerance in pairs{f32 = 3e-6, bf16 = 0.02} do
      local a = run(function() return attention(q, k, v, {is_causal = true}) end, {q, k, v}, randn(3, 90, 16):fill_(0.3))
      local q1, k1, v1 = q:detach():to(dtype), k:detach():to(dtype), v:detach():to(dtype)
      local b = run(function() return attention(q1, k1, v1, {is_causal = true}) end, {q1, k1, v1},
        randn(3, 90, 16):fill_(0.3):to(dtype))
      for i = 1, 4 do equal(a[i], b[i]:to("f64"), tolerance * math.max(1, a[i]:detach():abs():max():item())) end
    end
  end)

  it("stays finite for large scores", function()
    local q, k, v = resin.randn(4, 600, 8) * 300, resin.randn(4, 600, 8) * 300, resin.randn(4, 600, 8)
    assert.is_true(attention(q, k, v):isfinite():all():item())
  end)

  it("drops weights in the same places in the gradient", function()
    local q, k, v = randn(2, 70, 8), randn(2, 300, 8), randn(2, 300, 300)
    resin.no_grad(function() for i = 1, 2 do v[i]:copy_(resin.eye(300)) end end)     -- then the result is the dropped weights
    resin.manual_seed(9)
    local w = attention(q, k, v, {dropout_p = 0.25})
    local full = plain(q, k, v)
    local kept = w:gt(0)
    equal(resin.where(kept, full / 0.75, full * 0), w, 1e-12)
    local share = kept:to("f64"):mean():item()
    assert.is_true(math.abs(share - 0.75) < 0.01, share)
    local g = randn(2, 70, 300)
    resin.manual_seed(9)
    local a = run(function() return attention(q, k, v, {dropout_p = 0.25}) end, {q, k, v}, g)
    local scores = kept:to("f64") / 0.75
    local b = run(function()
      return ((q:matmul(k:transpose(-2, -1)) / math.sqrt(8)):softmax(-1) * scores):matmul(v)
    end, {q, k, v}, g)
    for i = 1, 4 do equal(a[i], b[i], 1e-10) end
  end)

  it("gives the same on any number of threads", function()
    local threads = resin.get_num_threads()
    for _, heads in ipairs{1, 3, 20} do
      local q, k, v, g = resin.randn(heads, 500, 32), resin.randn(heads, 500, 32), resin.randn(heads, 500, 32), resin.randn(heads, 500, 32)
      local found = {}
      for i, n in ipairs{1, 3} do
        resin.set_num_threads(n)
        found[i] = run(function() return attention(q, k, v, {is_causal = true}) end, {q, k, v}, g)
      end
      for i = 1, 4 do equal(found[1][i], found[2][i], 0) end
      local wide = run(function() return plain(q, k, v, after(500, 500):to("f32")) end, {q, k, v}, g)
      for i = 1, 4 do equal(wide[i], found[1][i], 2e-4) end
    end
    resin.set_num_threads(threads)
  end)

  it("keeps no matrix of scores", function()
    local q, k, v = resin.randn(1, 3000, 8), resin.randn(1, 3000, 8), resin.randn(1, 3000, 8)
    for _, t in ipairs{q, k, v} do t:requires_grad_(true) end
    collectgarbage()
    collectgarbage()
    local before = lib.stats.live_bytes
    local y = attention(q, k, v)
    assert.is_true(lib.stats.live_bytes - before < 3000 * 40 * 4)      -- the matrix would take 3000 * 3000 * 4
    y:sum():backward()
  end)

  it("says what is wrong", function()
    local q = resin.randn(2, 5, 4)
    fails("q [2, 5, 4] and k [2, 5, 3] must have the same last size", attention, q, resin.randn(2, 5, 3), q)
    fails("k [2, 5, 4] and v [2, 6, 4] must have the same length", attention, q, q, resin.randn(2, 6, 4))
    fails("mask [3, 5] must fit the scores [2, 5, 5]", attention, q, q, q, resin.randn(3, 5))
    fails("the mask is i64 but must be bool (true: takes part) or f32 (is added)", attention, q, q, q, resin.zeros({5, 5}, {dtype = "i64"}))
    fails("q is f32, k f64 and v f32", attention, q, q:to("f64"), q)
    fails("the leading dimensions of q [2, 5, 4], k [3, 5, 4]", attention, q, resin.randn(3, 5, 4), q)
  end)
end)

describe("MultiheadAttention", function()
  before_each(function() resin.manual_seed(4) end)

  it("has PyTorch's names, shapes and initial values", function()
    local m = nn.MultiheadAttention(12, 3)
    local shapes = {}
    for name, p in m:state_dict()() do shapes[#shapes + 1] = name .. " " .. table.concat(p.shape, "x") end
    assert.same({"in_proj_weight 36x12", "in_proj_bias 36", "out_proj.weight 12x12", "out_proj.bias 12"}, shapes)
    assert.equal(0, m.in_proj_bias:detach():abs():max():item() + m.out_proj.bias:detach():abs():max():item())
    assert.is_true(m.in_proj_weight:detach():abs():max():item() <= math.sqrt(6 / 48))
    m = nn.MultiheadAttention(12, 3, {kdim = 8, vdim = 10, bias = false})
    shapes = {}
    for name, p in m:state_dict()() do shapes[#shapes + 1] = name .. " " .. table.concat(p.shape, "x") end
    assert.same({"q_proj_weight 12x12", "k_proj_weight 12x8", "v_proj_weight 12x10", "out_proj.weight 12x12"}, shapes)
  end)

  it("given one tensor attends to itself; in any order of dimensions", function()
    local m = nn.MultiheadAttention(12, 3)
    local x = resin.randn(5, 2, 12)
    local y = m(x)
    equal(y, m(x, x, x))
    equal(y, m(x, x:clone()))
    local b = nn.MultiheadAttention(12, 3, {batch_first = true})
    b:load_state_dict(m:state_dict())
    equal(y, b(x:transpose(1, 2)):transpose(1, 2))
    equal(y:select(2, 2), m(x:select(2, 2)))
  end)

  it("returns the weights when asked, and then the same result", function()
    local m = nn.MultiheadAttention(12, 3)
    local q, k = resin.randn(5, 2, 12), resin.randn(7, 2, 12)
    local ignored = resin.tensor{{0, 0, 0, 0, 0, 1, 1}, {0, 0, 0, 0, 0, 0, 0}}:gt(0.5)
    local y = m(q, k, k, {key_padding_mask = ignored})
    local y2, w = m(q, k, k, {key_padding_mask = ignored, need_weights = true})
    equal(y, y2)
    assert.same({2, 5, 7}, w.shape)
    equal(resin.ones(2, 5), w:sum(3))
    assert.equal(0, w[1]:detach():narrow(2, 6, 2):max():item())
    local _, each = m(q, k, k, {key_padding_mask = ignored, need_weights = true, average_attn_weights = false})
    assert.same({2, 3, 5, 7}, each.shape)
    equal(w, each:mean(2))
    local c, cw = m(q, {is_causal = true, need_weights = true})
    equal(m(q, {is_causal = true}), c)
    assert.equal(0, cw:detach():narrow(2, 1, 1):narrow(3, 2, 4):max():item())
    equal(c, m(q, {attn_mask = after(5, 5):lt(-1)}))
  end)

  it("runs inside a container, with options by name", function()
    local m = nn.MultiheadAttention(12, 3)
    local block = nn.ResidualSequential{{"r", nn.Record("r")}, {"attn", m}, {"add", nn.Apply{record_name = "r"}},
      {"norm", nn.LayerNorm(12)}}
    local x, memory = resin.randn(5, 2, 12), resin.randn(7, 2, 12)
    equal(nn.LayerNorm(12)(x + m(x)), block(x))
    equal(nn.LayerNorm(12)(x + m(x, memory)), (block(x, {attn = {key = memory}})))
    local y, extras = block(x, {attn = {need_weights = true}})
    equal(block(x), y)
    assert.same({2, 5, 5}, extras.attn.shape)
  end)

  it("drops in training only", function()
    local m = nn.MultiheadAttention(12, 3, {dropout = 0.5})
    local x = resin.randn(5, 2, 12)
    assert.is_true(largest(m(x), (m(x))) > 0)
    m:eval()
    equal(m(x), (m(x)), 0)
  end)

  it("says what is wrong", function()
    local m = nn.MultiheadAttention(12, 3)
    local x = resin.randn(5, 2, 12)
    fails("MultiheadAttention: embed_dim 12 must be a multiple of num_heads 5", nn.MultiheadAttention, 12, 5)
    fails("MultiheadAttention: add_bias_kv is not supported", nn.MultiheadAttention, 12, 3, {add_bias_kv = true})
    fails("MultiheadAttention: query must be [T, B, 12] or [T, 12], got [5, 2, 8]", m, resin.randn(5, 2, 8))
    fails("MultiheadAttention: key must be [T, B, 12] or [T, 12] and go with the query [5, 2, 12], got [7, 3, 12]", m, x,
      resin.randn(7, 3, 12))
    fails("MultiheadAttention: key_padding_mask must be [2, 5], got [5, 2]", m, x, {key_padding_mask = resin.zeros(5, 2):gt(0)})
    fails("MultiheadAttention: attn_mask must be [5, 5] or [6, 5, 5], got [2, 5, 5]", m, x, {attn_mask = resin.zeros(2, 5, 5)})
    fails('MultiheadAttention: unknown option "mask"', m, x, {mask = x})
    fails("MultiheadAttention: with kdim 8 it needs a key", nn.MultiheadAttention(12, 3, {kdim = 8}), x)
  end)
end)

describe("TransformerEncoderLayer", function()
  it("is attention and a network, each with a skip and a norm", function()
    resin.manual_seed(8)
    local x = resin.randn(5, 2, 12)
    for _, norm_first in ipairs{false, true} do
      local m = nn.TransformerEncoderLayer(12, 3, {dim_feedforward = 20, dropout = 0, norm_first = norm_first, activation = "gelu"})
      local attn, a, b, n1, n2 = m.self_attn, m.linear1, m.linear2, m.norm1, m.norm2
      local y
      if norm_first then
        local u = x + attn(n1(x))
        y = u + b(F.gelu(a(n2(u))))
      else
        local u = n1(x + attn(x))
        y = n2(u + b(F.gelu(a(u))))
      end
      equal(y, m(x))
      assert.same({5, 2, 12}, m:output_shape{5, 2, 12})
    end
    local m = nn.TransformerEncoderLayer(12, 3)
    assert.is_true(largest(m(x), (m(x))) > 0)
    m:eval()
    local causal = m(x, {is_causal = true})
    equal(causal:narrow(1, 1, 3), m(x:narrow(1, 1, 3), {is_causal = true}))
  end)
end)

-- Where the features of a value are: images without a batch, and what stands between them and a flat value.

local resin = require "resin"
local nn = resin.nn
local R, A, S = nn.Record, nn.Apply, nn.ResidualSequential

local function same_padding(inp, out, o) return nn.Conv1d(inp, out, 3, {padding = 1, stride = o and o.stride or 1}) end

describe("features of [C, L], one signal without a batch", function()
  local x
  before_each(function()
    resin.manual_seed(1)
    x = resin.randn(3, 10)
  end)

  it("are the first dimension behind a convolution", function()
    assert.same({8, 10}, S(R("r"), same_padding(3, 5), A("concat", "r"))(x).shape)
    assert.same({5, 5}, S(R{"r", need_projection = true}, same_padding(3, 5, {stride = 2}), A("add", "r"))(x).shape)
    for _, operation in ipairs{"film", "highway", "gru", "input_gated"} do
      local block = S(R("r"), same_padding(3, 3), A{operation = operation, record_name = "r"})
      local y = block(x)
      assert.same({3, 10}, y.shape)
      assert.is_true((y - block(x:unsqueeze(1)):squeeze(1)):abs():max():item() < 1e-5, operation)
    end
    local block = S(R("r"), same_padding(3, 3), nn.ReLU(), A{layer_scale = 0.1, record_name = "r"})
    assert.same({3, 10}, block(x).shape)
    assert.same({3}, block[4].scale.shape)
  end)

  it("are the last one of [N, C]: behind BatchNorm1d, and where a layer flattened", function()
    assert.same({4, 6}, S(R("r"), nn.Linear(3, 3), nn.BatchNorm1d(3), A("concat", "r"))(resin.randn(4, 3)).shape)
    assert.same({3, 7}, nn.Dense(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), nn.Linear(6, 1))(resin.randn(3, 4)).shape)
    local batch = resin.randn(4, 3, 10)
    for _, flatten in ipairs{nn.Flatten(), function(v) return v:reshape{4, -1} end} do
      assert.same({4, 100}, S(same_padding(3, 5), flatten, R("r"), nn.ReLU(), A("concat", "r"))(batch).shape)
    end
    assert.same({4, 10, 64}, S(nn.Conv2d(3, 5, 1), nn.Flatten(3), R("r"), nn.ReLU(), A("concat", "r"))(resin.randn(4, 3, 8, 8)).shape)
    assert.same({10, 8, 8}, S(nn.Conv2d(3, 5, 1), R("r"), nn.ReLU(), A("concat", "r"))(resin.randn(3, 8, 8)).shape)
  end)

  it("are named in messages", function()
    local ok, err = pcall(S(R("r"), same_padding(3, 4), A("concat", "r")), resin.randn(3, 10))
    assert.is_true(ok, err)
    ok, err = pcall(S(same_padding(3, 4), R("r"), A{record_name = "r", scale = resin.ones(3)}), x)
    assert.is_false(ok)
    assert.truthy(err:find("scale has 3 values, one per channel, but the value [4, 10] has 4 channels (dimension 1)", 1, true), err)
  end)
end)

-- Skips of any module: listing them, and switching them off and on (lua/resin/residual/info.lua).

local resin = require "resin"
local nn, models = resin.nn, resin.models

local function distance(a, b) return (a - b):abs():max():item() end

local function message(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  return err
end

local Own = nn.class("Own")
function Own:init()
  self.stem = nn.Linear(3, 4)
  self.block = nn.ResidualSequential(nn.Record("in"), nn.Linear(4, 4), {"join", nn.Apply("add", "in")})
end
function Own:forward(x) return self.block(self.stem(x)) end

describe("skips of a module that is no residual container", function()
  before_each(function() resin.manual_seed(1) end)

  it("are listed with their paths, and with shapes for an input", function()
    local info = models.preact_resnet(8):get_residual_info{1, 3, 32, 32}
    assert.equal(3, #info.applies)
    assert.equal("layer2.0.add_input", info.applies[2].path)
    assert.same({1, 16, 32, 32}, info.records[2].shape)
    assert.same({1, 32, 16, 16}, info.records[3].shape)
    info = Own():get_residual_info{5, 3}
    assert.equal("block.0", info.records[1].path)
    assert.same({5, 4}, info.records[1].shape)
    assert.is_nil(Own():get_residual_info().records[1].shape)
    assert.equal(4, #models.transformer_encoder(10, {size = 8, layers = 2, heads = 2}):get_residual_info{2, 3}.applies)
    assert.same({records = {}, applies = {}}, nn.Linear(2, 2):get_residual_info())
  end)

  it("are switched off by name, by path, and on again", function()
    local x, own = resin.randn(2, 3), nn.Sequential(Own(), nn.Tanh())
    local before = own(x)
    local without = own[1].block[2](own[1].stem(x)):tanh()
    for _, name in ipairs{"in", "join", "0.block.join", "0.block.in"} do
      own:disable_skip(name)
      assert.is_true(distance(own(x), without) < 1e-6, name)
      own:enable_skip(name)
      assert.equal(0, distance(own(x), before), name)
    end
  end)

  it("one of a ResNet by its path, or all of one name", function()
    local net = models.preact_resnet(14):eval()
    local function off()
      local list = {}
      for _, a in ipairs(net:get_residual_info().applies) do list[#list + 1] = a.disabled and a.path or nil end
      return list
    end
    net:disable_skip("layer3.1.add_input")
    assert.same({"layer3.1.add_input"}, off())
    net:enable_skip("layer3.1.input")
    assert.same({}, off())
    net:disable_skip("input", "zero")
    assert.equal(6, #off())
  end)

  it("an unknown one is an error that lists names and paths", function()
    local err = message(function() models.preact_resnet(8):disable_skip("layer1.9.add_input") end)
    assert.truthy(err:find('disable_skip: there is no skip "layer1.9.add_input" (known: "input"); by the path of its Apply: '
      .. "layer1.0.add_input, layer2.0.add_input, layer3.0.add_input", 1, true), err)
    assert.truthy(message(function() models.preact_resnet(110):disable_skip("x") end):find("and 42 more", 1, true))
    assert.truthy(message(function() nn.Linear(2, 2):enable_skip("x") end):find("there is no Apply in this module", 1, true))
  end)
end)

-- Options of the skips in models and blocks: drop_path, layer_scale, scale, alpha (lua/resin/blocks/joins.lua).

local resin = require "resin"
local nn, models, blocks = resin.nn, resin.models, resin.blocks

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
  assert.is_truthy(message:find("skip_options_spec.lua", 1, true), message)
end

local function applies(model)
  local list = {}
  for i, a in ipairs(model:get_residual_info().applies) do list[i] = a.module end
  return list
end

local function rates(model)
  local list = {}
  for i, a in ipairs(applies(model)) do list[i] = math.floor(a.drop_path * 1000 + 0.5) / 1000 end
  return list
end

local SIZES = {3, 3, 3, 3, 3, 1}

-- Constructor of each model that adds, an input, and the number of its skips.
local function adding()
  local ids = resin.randint(1, 10, {2, 4})
  return {
    resnet18_cifar = {models.resnet18_cifar, {}, nil, 8},
    resnet50 = {models.resnet50, {}, nil, 16},
    preact_resnet18 = {models.preact_resnet18, {}, nil, 8},
    preact_resnet = {models.preact_resnet, {depth = 8}, resin.randn(2, 3, 8, 8), 3},
    wide_resnet = {models.wide_resnet, {depth = 10, widen = 1}, resin.randn(2, 3, 8, 8), 3},
    mobilenet_v2 = {models.mobilenet_v2, {}, nil, 10},
    transformer_encoder = {models.transformer_encoder, {vocabulary = 10, size = 8, layers = 3, heads = 2}, ids, 6},
    gpt = {models.gpt, {vocabulary = 10, size = 8, layers = 3, heads = 2}, ids, 6},
    residual_lstm_tagger = {models.residual_lstm_tagger, {vocabulary = 10, tags = 3, size = 8, layers = 3}, ids, 3},
    ImprovedResidualNetwork = {function(o) return models.ImprovedResidualNetwork(SIZES, o) end, {}, resin.randn(2, 3), 5},
    ExampleDeepNeuralNetwork = {function(o) return models.ExampleDeepNeuralNetwork(SIZES, o) end, {}, resin.randn(2, 3), 4},
  }
end

local function with(given, more)
  local o = {}
  for k, v in pairs(given) do o[k] = v end
  for k, v in pairs(more) do o[k] = v end
  return o
end

describe("options of a model's skips", function()
  before_each(function() resin.manual_seed(1) end)

  it("drop_path rises with the depth, and evaluation stops it", function()
    for name, case in pairs(adding()) do
      local model = case[1](with(case[2], {drop_path = 0.6}))
      local list, n = rates(model), case[4]
      assert.equal(n, #list, name)
      assert.equal(0, list[1], name)
      if name ~= "ExampleDeepNeuralNetwork" then assert.equal(0.6, list[n], name) end     -- its last layer has no skip
      for i = 2, n do assert.is_true(list[i] >= list[i - 1], name) end
      model:eval()
      for _, apply in ipairs(applies(model)) do
        if apply.drop_path > 0 then assert.is_false(apply.training, name) end
      end
      if case[3] then assert.equal(0, (model(case[3]) - model(case[3])):abs():max():item(), name) end
    end
  end)

  it("drop_path changes no name in the state", function()
    local plain, dropping = models.preact_resnet(8), models.preact_resnet{depth = 8, drop_path = 0.2}
    dropping:load_state_dict(plain:state_dict())
    assert.equal(plain:num_parameters(), dropping:num_parameters())
    assert.truthy(tostring(dropping):find("drop_path = 0.2", 1, true))
    assert.same({0, 0.5, 0.1}, rates(models.preact_resnet{depth = 8, drop_path = {0, 0.5, 0.1}}))
    assert.equal("batch", applies(models.gpt(5, {size = 4, heads = 1, drop_path = 0.2, drop_path_mode = "batch"}))[8].drop_path_mode)
    assert.same({0, 0, 0.1, 0.1, 0.2, 0.2}, rates(models.gpt(5, {size = 4, layers = 3, heads = 1, drop_path = 0.2})))
  end)

  it("drops the skips' branches in training", function()
    local model, x = models.preact_resnet{depth = 8, drop_path = {1, 1, 1}}, resin.randn(2, 3, 8, 8)
    local before = model(x)
    resin.no_grad(function() model.layer1[1].conv2.weight:mul_(5) end)
    assert.equal(0, (model(x) - before):abs():max():item())
    model:eval()
  end)

  it("layer_scale, scale and alpha reach each skip, trained ones one of its own", function()
    for name, case in pairs(adding()) do
      local n = case[4]
      for _, given in ipairs{{layer_scale = 0.1}, {scale = 0.5, alpha = 0.9}, {scale = function() return nn.residual.rezero() end}} do
        local plain = case[1](case[2]):num_parameters()
        local model = case[1](with(case[2], given))
        local list, own = applies(model), {}
        assert.equal(n, #list)
        for _, apply in ipairs(list) do
          if given.alpha then assert.same({0.5, 0.9}, {apply.scale, apply.alpha}) else own[apply.scale] = true end
        end
        local trained = 0
        for _ in pairs(own) do trained = trained + 1 end
        assert.equal(given.alpha and 0 or n, trained, name)
        assert.is_true(given.alpha and model:num_parameters() == plain or model:num_parameters() >= plain + n, name)
        if case[3] then model(case[3]):sum():backward() end
      end
    end
  end)

  it("a factor may depend on the skip's number", function()
    local seen = {}
    models.gpt(5, {size = 4, layers = 2, heads = 1, scale = function(k, n)
      seen[#seen + 1] = k .. "/" .. n
      return 1 / k
    end})
    assert.same({"1/4", "2/4", "3/4", "4/4"}, seen)
    local alpha = nn.residual.deepnorm(12).alpha
    local deep = models.transformer_encoder(5, {size = 4, layers = 12, heads = 1, norm_first = false, alpha = alpha})
    assert.is_near((2 * 12) ^ 0.25, applies(deep)[24].alpha, 1e-6)
  end)

  it("what cannot be is an error", function()
    fails("preact_resnet: scale would be one parameter for all 3 skips; give a function(k, n) that makes one for each",
      models.preact_resnet, {depth = 8, scale = nn.residual.rezero()})
    fails("gpt: alpha would be one parameter for all 8 skips", models.gpt, 5, {size = 4, heads = 1, alpha = nn.LearnableAlpha(0.5)})
    fails("resnet18: drop_path must be a number or a table of 8, one for each skip, got 2", models.resnet18, {drop_path = {0, 1}})
    fails("resnet18: drop_path must be", models.resnet18, {drop_path = 2})
    fails('densenet: unknown option "drop_path"', models.densenet, {drop_path = 0.1})
  end)
end)

describe("options of a block's skips", function()
  before_each(function() resin.manual_seed(1) end)

  it("are Apply's", function()
    local layer, x = nn.Linear(4, 4), resin.randn(3, 4)
    local y = blocks.ResidualAdd{layer, scale = 0.5, alpha = 2}(x)
    assert.is_true((y - (0.5 * layer(x) + 2 * x)):abs():max():item() < 1e-5)
    local rezero = blocks.ResidualAdd(layer, {scale = nn.residual.rezero()})
    assert.equal(0, (rezero(x) - x):abs():max():item())
    assert.equal(layer:num_parameters() + 1, rezero:num_parameters())
    local dropping = blocks.Residual({nn.Linear(4, 4), nn.Linear(4, 4)}, {res_func = "add", drop_path = 1})
    assert.equal(0, (dropping(x) - x):abs():max():item())
    assert.is_true((dropping:eval()(x) - x):abs():max():item() > 0)
    assert.same({0.1, 0.4}, rates(blocks.ResidualAdd{nn.Linear(4, 4), nn.Linear(4, 4), drop_path = {0.1, 0.4}}))
    local levels = blocks.ResidualAdd{{nn.Linear(4, 4), nn.Linear(4, 4)}, {nn.Linear(4, 4)}, layer_scale = 0.1}
    assert.equal(1, #applies(levels))
    assert.same({4}, applies(levels)[1].scale.shape)
    assert.equal(2, #applies(blocks.ResidualAdd{nn.Linear(4, 4), nn.Linear(4, 4), scale = function() return nn.residual.rezero() end}))
  end)

  it("that do not fit are errors", function()
    fails("ResidualAdd: scale would be one parameter for all 2 skips", blocks.ResidualAdd,
      {nn.Linear(4, 4), nn.Linear(4, 4), scale = nn.residual.rezero()})
    fails("takes no scale", blocks.Residual, nn.Linear(4, 4), {res_func = function(a, b) return a + b end, scale = 2})
    fails('unknown option "drop_path"', blocks.ResidualCat, {nn.Linear(4, 4)}, {drop_path = 0.1})
  end)
end)

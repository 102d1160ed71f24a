local resin = require "resin"
local nn = resin.nn

local function message(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  return err
end

local function count(text, what)
  return select(2, text:gsub(what:gsub("%p", "%%%0"), ""))
end

local function lines_of(...) return table.concat({...}, "\n") .. "\n" end

local has_graphviz = os.execute("dot -V >/dev/null 2>&1") == 0

describe("model:visualize as text", function()
  before_each(function() resin.manual_seed(1) end)

  it("draws a skip with its operation, shapes and parameters", function()
    local model = nn.ResidualSequential{
      {"keep", nn.Record("in")}, {"fc", nn.Linear(8, 8)}, {"act", nn.ReLU()}, {"join", nn.Apply("add", "in", 0.5)},
    }
    assert.equal(lines_of(
      "  ○ input                            [2, 8]",
      "╭─● record \"in\"",
      "│ ■ fc  Linear(8, 8)             72  [2, 8]",
      "│ ■ act  ReLU()                      [2, 8]",
      "╰▶⊕ join  add \"in\", alpha = 0.5      [2, 8]",
      "  ○ output                           [2, 8]"), model:visualize{shape = {2, 8}})
  end)

  it("draws skips that nest and cross in lanes of their own", function()
    local model = nn.ResidualSequential(nn.Record("a"), nn.Linear(4, 4), nn.Record("b"), nn.Linear(4, 4), nn.Apply("add", "a"),
      nn.Linear(4, 4), nn.Apply("multiply", "b"))
    assert.equal(lines_of(
      "    ○ input",
      "  ╭─● record \"a\"",
      "  │ ■ 1  Linear(4, 4)  20",
      "╭─┼─● record \"b\"",
      "│ │ ■ 3  Linear(4, 4)  20",
      "│ ╰▶⊕ 4  add \"a\"",
      "│   ■ 5  Linear(4, 4)  20",
      "╰──▶⊗ 6  multiply \"b\"",
      "    ○ output"), (model:visualize():gsub(" +\n", "\n")))
  end)

  it("draws equal parts once", function()
    local model = nn.ResidualSequential()
    for _ = 1, 5 do
      model:append(nn.Record()):append(nn.Linear(8, 8)):append(nn.Tanh()):append(nn.Apply{scale = nn.Parameter(resin.rand(1))})
    end
    local text = model:visualize{shape = {2, 8}}
    assert.truthy(text:find("┌ × 5", 1, true))
    assert.truthy(text:find("(365)", 1, true))
    assert.equal(1, count(text, "Tanh"))
    assert.truthy(text:find("add, scale learned", 1, true))
    assert.equal(5, count(model:visualize{shape = {2, 8}, repeats = false}, "Tanh"))
  end)

  it("does not fold what differs, and what a skip enters", function()
    local model = nn.Sequential()
    for i = 1, 5 do model:append(nn.Sequential(nn.Linear(2 ^ i, 2 ^ (i + 1)), nn.ReLU())) end
    assert.is_nil(model:visualize{shape = {2, 2}}:find("×", 1, true))
    local skips = nn.ResidualSequential(nn.Record("a"))
    for _ = 1, 5 do skips:append(nn.Linear(4, 4)):append(nn.Tanh()):append(nn.Apply("add", "a")) end
    assert.equal(5, count(skips:visualize(), "Tanh"))
  end)

  it("shows blocks of a Circuit", function()
    local model = nn.Circuit(nn.Linear(4, 4), nn.StartBlock("res", 3), nn.SaveInput("x"), nn.Linear(4, 4), nn.GetInput("x"),
      nn.EndBlock("res"))
    local text = model:visualize{shape = {2, 4}}
    assert.truthy(text:find("┌ res × 3", 1, true))
    assert.truthy(text:find("(20 shared)", 1, true))
    assert.truthy(text:find('record "x"', 1, true))
    assert.truthy(text:find('add "x"', 1, true))
  end)

  it("shows branches, projections, transforms and several records", function()
    local text = nn.Sequential(nn.Parallel(nn.Linear(8, 4), nn.Linear(8, 4), {join = "cat"}), nn.Linear(8, 2)):visualize{shape = {3, 8}}
    assert.truthy(text:find("⊕ │ cat +%[3, 8%]"))
    text = nn.ResidualSequential(nn.Record{name = "r", need_projection = true}, nn.Linear(4, 8), nn.Apply("add", "r")):visualize()
    assert.truthy(text:find('add "r", through Linear%(4, 8%) +40'))
    text = nn.ResidualSequential(nn.Record("a"), nn.Linear(4, 4), nn.Record("b"), nn.Linear(4, 4),
      nn.Apply{records = {"a", "b"}}):visualize()
    assert.truthy(text:find('add "a", "b"', 1, true))
  end)

  it("draws every model of the kit", function()
    local x = {2, 4}
    for _, model in ipairs{
      nn.Linear(4, 4), nn.Residual(nn.Linear(4, 4), {norm = "pre", layer_scale = 1e-5}), nn.Dense(nn.Linear(4, 4)),
      resin.blocks.ResidualAdd{nn.Linear(4, 4), nn.Linear(4, 4)}, resin.blocks.InputForward({nn.Linear(4, 4)}, "add"),
    } do
      local text = model:visualize{shape = x}
      assert.truthy(text:find("output", 1, true))
      assert.equal(model:num_parameters(), model:summary(x).parameters)
    end
  end)
end)

describe("model:visualize as DOT", function()
  it("gives each skip edges of its own, and nested containers clusters", function()
    local model = nn.ResidualSequential{
      {"keep", nn.Record("far")},
      {"inner", nn.ResidualSequential(nn.Record("near"), nn.Linear(8, 8), nn.Apply("multiply", "near"), nn.Apply("add", "far"))},
      {"join", nn.Apply("subtract", "far")},
    }
    local text = model:visualize{format = "dot", shape = {2, 8}}
    assert.truthy(text:find("^digraph model {"))
    assert.equal(1, count(text, "subgraph cluster_"))
    assert.truthy(text:find("<b>inner</b>", 1, true))
    assert.truthy(text:find("multiply “near”", 1, true))
    assert.truthy(text:find("add “far”", 1, true))
    assert.truthy(text:find("subtract “far”", 1, true))
    assert.equal(6, count(text, "weight=2"))          -- two edges and a tag for each of three skips
    assert.truthy(text:find("72 parameters", 1, true))
    assert.truthy(text:find("[2, 8]", 1, true))
    assert.truthy(model:visualize{format = "dot", direction = "right"}:find("rankdir=LR", 1, true))
  end)

  it("writes no shape where none is given", function()
    assert.is_nil(nn.Sequential(nn.Linear(2, 2)):visualize{format = "dot"}:find("[2, 2]", 1, true))
  end)

  it("escapes what users write", function()
    local model = nn.ResidualSequential{{'<b>"&', nn.Record('<r>')}, {"x", nn.Linear(2, 2)}, {"y", nn.Apply("add", "<r>")}}
    local text = model:visualize{format = "dot", title = 'a "title"'}
    assert.truthy(text:find("“&lt;r&gt;”", 1, true))
    assert.truthy(text:find('label="a \\"title\\""', 1, true))
  end)
end)

describe("files", function()
  local function written(ending, options)
    local path = os.tmpname()
    os.remove(path)
    path = path .. " it's." .. ending
    options = options or {}
    options.path = path
    local drawing = nn.Sequential(nn.Linear(2, 2), nn.ReLU()):visualize(options)
    local file = assert(io.open(path, "rb"))
    local text = file:read("*a")
    file:close()
    os.remove(path)
    assert.equal(drawing, text)
    return text
  end

  it("have the format of their name", function()
    assert.truthy(written("txt"):find("■ 0  Linear(2, 2)", 1, true))
    assert.truthy(written("dot"):find("digraph", 1, true))
    assert.truthy(written("gv"):find("digraph", 1, true))
    if not has_graphviz then return pending("Graphviz is not installed") end
    assert.equal("%PDF", written("pdf"):sub(1, 4))
    assert.equal("\137PNG", written("png"):sub(1, 4))
    assert.truthy(written("svg"):find("<svg", 1, true))
    assert.truthy(written("bin", {format = "svg"}):find("<svg", 1, true))
  end)

  it("the missing program is named with its package", function()
    local model = nn.Linear(2, 2)
    local text = message(model.visualize, model, {format = "pdf", program = "no-such-dot"})
    assert.truthy(text:find('Linear: visualize: PDF is drawn by the program "no-such-dot", which cannot be run; install the package '
      .. "graphviz (apt-get install graphviz)", 1, true))
  end)

  it("mistakes are said", function()
    local model = nn.Linear(2, 2)
    local function said(options, what) assert.truthy(message(model.visualize, model, options):find(what, 1, true)) end
    said({path = "net.jpg"}, "Linear: visualize: net.jpg does not end in .pdf, .svg, .png, .dot or .txt")
    said({path = "/no/such/folder/x.dot"}, "Linear: visualize: cannot write /no/such/folder/x.dot")
    said({shap = {2, 2}}, 'unknown option "shap"')
    said({direction = "up"}, "direction")
    said({shape = {2, 2}, input = resin.ones(2, 2)}, "give shape or input, not both")
  end)
end)

describe("modules that hold others are laid open", function()
  before_each(function() resin.manual_seed(1) end)

  local function text(model, shape) return model:visualize{shape = shape} end

  it("transformers", function()
    for name, shape in pairs{transformer_encoder = {2, 5}, gpt = {2, 5}} do
      for _, given in ipairs{shape, false} do
        local drawing = text(resin.models[name](10, {size = 8, heads = 2, layers = 3}), given or nil)
        assert.truthy(drawing:find("Layer × 3", 1, true), drawing)
        assert.equal(2, count(drawing, 'record "input'))
        assert.equal(2, count(drawing, "Embedding("))
      end
    end
  end)

  it("Checkpoint, HyperConnections, Dense", function()
    local model = nn.Sequential(
      nn.Checkpoint(nn.ResidualSequential(nn.Record("r"), nn.Linear(4, 4), nn.Apply("add", "r"))),
      nn.HyperConnections(nn.Linear(4, 4), nn.Tanh(), {streams = 2}), nn.Dense(nn.Linear(4, 2), nn.Linear(6, 3)))
    assert.equal(lines_of(
      "    ○ input                                [2, 4]",
      "    │ ┌ Checkpoint",
      "    │ │ ┌ fn: ResidualSequential",
      "  ╭─● │ │ record \"r\"",
      "  │ ■ │ │ 1  Linear(4, 4)              20  [2, 4]",
      "  ╰▶⊕ │ │ 2  add \"r\"                       [2, 4]",
      "    │ ┌ HyperConnections{streams = 2}",
      "    ■ │ branch  Linear(4, 4)           20  [2, 4]",
      "╭───■ │ branch  Tanh()                     [2, 4]",
      "│   │ ┌ Dense",
      "│   ■ │ 0  Linear(4, 2)                10  [2, 2]",
      "╰─┬▶⊕ │ concat                             [2, 6]",
      "  │ ■ │ 1  Linear(6, 3)                21  [2, 3]",
      "  ╰▶⊕ │ concat                             [2, 9]",
      "    ○ output                               [2, 9]"), text(model, {2, 4}))
    assert.equal(text(model, {2, 4}), model:visualize{input = resin.randn(2, 4)})
  end)

  it("Reversible: two halves", function()
    local model = nn.Reversible{{nn.Linear(2, 2), nn.Tanh()}}
    assert.equal(lines_of(
      "      ○ input               [2, 4]",
      "╭───┬─◇ split               [2, 2]",
      "│   │ ■ f  Linear(2, 2)  6  [2, 2]",
      "│ ╭─┴▶⊕ add                 [2, 2]",
      "│ │   ■ g  Tanh()           [2, 2]",
      "╰─┼──▶⊕ add                 [2, 2]",
      "  ╰──▶⊕ concat              [2, 4]",
      "      ○ output              [2, 4]"), text(model, {2, 4}))
  end)

  it("modules of one's own, by what they call", function()
    local Own = nn.class("Own")
    function Own:init()
      self.block = nn.ResidualSequential(nn.Record("in"), nn.Linear(4, 4), nn.Apply("add", "in"))
      self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
    end
    function Own:forward(x)
      local h = self.block(x)
      return self.b(self.a(h):relu()) + self.c(h)
    end
    for _, model in ipairs{Own(), nn.Sequential(Own()), nn.ResidualSequential(Own())} do
      local drawing = text(model, {2, 4})
      assert.truthy(drawing:find('add "in"', 1, true), drawing)
      assert.truthy(drawing:find("b  Linear(4, 3) (behind code)", 1, true), drawing)
      assert.truthy(drawing:find("▶■ [^\n]*c  Linear%(4, 3%) "), drawing)          -- it takes what the block gave, not what b gave
    end
    assert.equal(2, count(nn.Sequential(Own()):visualize{shape = {2, 4}, format = "dot"}, "style=dotted"))
    assert.truthy(text(nn.Sequential(Own())):find("■ 0  Own", 1, true))            -- nothing is known about its calls
    local Loop = nn.class("Loop")
    function Loop:init() self.layer = nn.Tanh() end
    function Loop:forward(x)
      for _ = 1, 100 do x = self.layer(x) end
      return x
    end
    assert.truthy(text(nn.Sequential(Loop()), {2, 4}):find("■ 0  Loop", 1, true))
  end)
end)

describe("titles of clusters", function()
  it("stand clear of the trunk", function()
    if not has_graphviz then return pending("no Graphviz") end
    local model = nn.Circuit(nn.StartBlock("outer", 2), nn.StartBlock("a_block_of_a_long_name", {num_repeats = 3, share = false}),
      nn.SaveInput("r"), nn.Linear(4, 4), nn.GetInput("r"), nn.EndBlock("a_block_of_a_long_name"), nn.EndBlock("outer"))
    local svg = nn.Sequential{{"a_sequential", nn.Sequential(model, nn.Tanh())}}:visualize{shape = {2, 4}, format = "svg"}
    local trunk = tonumber(svg:match('<text[^>]* x="([-%d.]+)"[^>]*>input</text>'))
    local titles = 0
    for cluster in svg:gmatch('<g id="clust.-</g>') do
      for x, size, title in cluster:gmatch('<text[^>]* x="([-%d.]+)"[^>]* font%-size="([%d.]+)"[^>]*>([^<]*)</text>') do
        titles = titles + 1
        assert.is_true(tonumber(x) + 0.5 * tonumber(size) * #title < trunk, title)
      end
    end
    assert.is_true(titles >= 5)
  end)
end)

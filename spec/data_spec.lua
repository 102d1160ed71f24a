-- resin.data: IDX files, TensorDataset, DataLoader, Fashion-MNIST.

local resin = require "resin"
local data = resin.data

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function write(bytes)
  local path = os.tmpname()
  local file = assert(io.open(path, "wb"))
  file:write(bytes)
  file:close()
  return path
end

local function idx_bytes(shape, values)
  local out = {"\0\0\8", string.char(#shape)}
  for _, n in ipairs(shape) do out[#out + 1] = string.char(0, 0, math.floor(n / 256), n % 256) end
  for _, v in ipairs(values) do out[#out + 1] = string.char(v) end
  return table.concat(out)
end

describe("idx", function()
  it("reads a plain file, whole or in part", function()
    local path = write(idx_bytes({3, 2}, {1, 2, 3, 4, 5, 255}))
    local t = data.idx(path)
    assert.equal("u8", t.dtype)
    assert.same({{1, 2}, {3, 4}, {5, 255}}, t:totable())
    assert.same({{1, 2}, {3, 4}}, data.idx(path, {limit = 2}):totable())
    assert.same({3, 2}, data.idx(path, {limit = 20}).shape)
    os.remove(path)
  end)

  it("refuses what is no IDX file", function()
    local path = write(idx_bytes({3, 2}, {1, 2, 3}))
    assert.is_false(pcall(data.idx, path))
    os.remove(path)
    fails("/no/such/file", data.idx, "/no/such/file")
    fails("idx: limit must be an integer of at least 1", data.idx, path, {limit = 0})
    fails("idx: path must be a string", data.idx, 3)
  end)
end)

describe("TensorDataset", function()
  local x, y = resin.arange(1, 10):reshape(5, 2), resin.arange(1, 5, 1, {dtype = "i64"})
  local set = data.TensorDataset(x, y)

  it("gives samples", function()
    assert.equal(5, set:size())
    local a, b = set:get(2)
    assert.same({3, 4}, a:totable())
    assert.equal(2, b:item())
    a, b = set:batch(resin.tensor({5, 1}, {dtype = "i64"}))
    assert.same({{9, 10}, {1, 2}}, a:totable())
    assert.same({5, 1}, b:totable())
    a = set:range(2, 3)
    assert.same({{3, 4}, {5, 6}}, a:totable())
  end)

  it("checks its tensors", function()
    fails("TensorDataset: tensor 1 has 5 samples but tensor 2, tensor [4] f32, has 4", data.TensorDataset, x, resin.zeros(4))
    fails("TensorDataset: give at least one tensor", data.TensorDataset)
    fails("TensorDataset: tensor 1 must be a tensor, got number 3", data.TensorDataset, 3)
    fails("TensorDataset: get: position must be an integer from 1 to 5, got number 6", set.get, set, 6)
  end)
end)

describe("DataLoader", function()
  local x, y = resin.arange(1, 10):reshape(10, 1), resin.arange(1, 10, 1, {dtype = "i64"})
  local set = data.TensorDataset(x, y)

  local function labels(loader)
    local out = {}
    for i, bx, by in loader:iter() do
      assert.equal(#out, 0 + (i - 1) * loader.batch_size)
      assert.equal(bx:size(1), by:size(1))
      for j, v in ipairs(by:totable()) do
        assert.equal(v, bx:totable()[j][1])
        out[#out + 1] = v
      end
    end
    return out
  end

  it("goes through in order, with a short last batch or without", function()
    local loader = data.DataLoader(set, {batch_size = 4})
    assert.equal(3, loader:size())
    assert.same({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, labels(loader))
    loader = data.DataLoader(set, {batch_size = 4, drop_last = true})
    assert.equal(2, loader:size())
    assert.equal(8, #labels(loader))
    assert.equal(10, data.DataLoader(set):size())
  end)

  it("shuffles by seed and epoch, without touching other random numbers", function()
    local loader = data.DataLoader(set, {batch_size = 3, shuffle = true, seed = 7})
    resin.manual_seed(1)
    local first, second = labels(loader), labels(loader)
    local after = resin.rand(1):item()
    resin.manual_seed(1)
    assert.equal(resin.rand(1):item(), after)
    assert.are_not.same(first, second)
    local sorted = {unpack(second)}
    table.sort(sorted)
    assert.same({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, sorted)
    local again = data.DataLoader(set, {batch_size = 3, shuffle = true, seed = 7})
    assert.same(first, labels(again))
    again = data.DataLoader(set, {batch_size = 5, shuffle = true, seed = 7})
    again.epoch = 1
    assert.same(second, labels(again))
    assert.are_not.same(first, labels(data.DataLoader(set, {shuffle = true, seed = 8})))
    resin.manual_seed(3)
    local free = labels(data.DataLoader(set, {shuffle = true}))
    resin.manual_seed(3)
    assert.same(free, labels(data.DataLoader(set, {shuffle = true})))
  end)

  it("transforms batches and takes datasets of one's own", function()
    local loader = data.DataLoader(set, {batch_size = 5, transform = function(a, b) return a * 2, b end})
    for i, a, b in loader:iter() do
      assert.equal(b:totable()[1] * 2, a:totable()[1][1])
      assert.is_true(i <= 2)
    end
    local squares = {size = function() return 3 end, get = function(_, i) return resin.tensor{i, i * i}, i end}
    local seen = {}
    for _, a, b in data.DataLoader(squares, {batch_size = 2}):iter() do seen[#seen + 1] = {a:totable(), b:totable()} end
    assert.same({{{{1, 1}, {2, 4}}, {1, 2}}, {{{3, 9}}, {3}}}, seen)
  end)

  it("works inside a scope", function()
    local loader = data.DataLoader(set, {batch_size = 4, shuffle = true, seed = 1})
    local total = 0
    local iterate, state, i = loader:iter()
    repeat
      resin.scope(function()
        local a
        i, a = iterate(state, i)
        if i then total = total + a:sum():item() end
      end)
    until not i
    assert.equal(55, total)
  end)

  it("says what it is, and how to loop", function()
    local five = data.TensorDataset(resin.ones(5, 2), resin.arange(5))
    assert.equal("TensorDataset(5 samples: tensor [5, 2] f32, tensor [5] i64)", tostring(five))
    assert.equal("DataLoader(5 samples in 2 batches of 3, shuffled, seed 1)",
      tostring(data.DataLoader(five, {batch_size = 3, shuffle = true, seed = 1})))
    assert.equal("DataLoader(5 samples in 1 batch of 3, last one dropped when short)",
      tostring(data.DataLoader(five, {batch_size = 3, drop_last = true})))
    fails("DataLoader: write for i, x, y in loader:iter() do", function()
      for _ in data.DataLoader(five) do return end       -- luacheck: ignore 512
    end)
  end)

  it("checks its options", function()
    fails("DataLoader: batch_size must be an integer of at least 1, got number 0", data.DataLoader, set, {batch_size = 0})
    fails('DataLoader: unknown option "suffle"', data.DataLoader, set, {suffle = true})
    fails("DataLoader: dataset must be a table with size() and batch(index) or get(i)", data.DataLoader, {})
    fails("DataLoader: shuffle must be a boolean", data.DataLoader, set, {shuffle = 1})
  end)
end)

describe("fashion_mnist", function()
  it("reads the four files of a directory", function()
    local dir = os.tmpname()
    os.remove(dir)
    assert(os.execute("mkdir " .. dir))
    for prefix, n in pairs{train = 3, t10k = 2} do
      local pixels, labels = {}, {}
      for i = 1, n * 4 do pixels[i] = i end
      for i = 1, n do labels[i] = i - 1 end
      os.rename(write(idx_bytes({n, 2, 2}, pixels)), dir .. "/" .. prefix .. "-images-idx3-ubyte")
      os.rename(write(idx_bytes({n}, labels)), dir .. "/" .. prefix .. "-labels-idx1-ubyte")
    end
    local set = data.fashion_mnist{dir = dir, limit = 2}
    assert.same({2, 2, 2}, set.train.images.shape)
    assert.equal("u8", set.train.images.dtype)
    assert.same({1, 2}, set.train.labels:totable())
    assert.equal("i64", set.test.labels.dtype)
    assert.equal(10, #set.classes)
    assert.equal("Ankle boot", set.classes[10])
    os.execute("rm -r " .. dir)
    fails("install the Debian package dataset-fashion-mnist", data.fashion_mnist, {dir = dir})
  end)

  it("reads the Debian package #slow", function()
    local set = data.fashion_mnist()
    assert.same({60000, 28, 28}, set.train.images.shape)
    assert.same({10000}, set.test.labels.shape)
    assert.equal(10, set.train.labels[1]:item())     -- the first training image is an ankle boot
  end)
end)

--- IDX files, the format of MNIST, plain or gzip; and the Fashion-MNIST data set as Debian packages it.

local lib = require "resin.lib"
local check = require "resin.check"
local ops = require "resin.ops"
local scope = require "resin.scope"
local serialize = require "resin.serialize"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx
local out = ffi.new("rs_tensor *[1]")

local idx = {}

--- The tensor in an IDX file. Options: limit, the most entries of the first dimension to read.
---@param path string
---@param options? {limit: integer}
---@return resin.Tensor
function idx.read(path, options)
  serialize.text_for_c(path, "idx: path")
  local limit = check.options(options, {"limit"}, "idx").limit
  limit = limit == nil and 0 or check.integer(limit, "idx: limit", 1)
  local rc = C.rs_read_idx(ctx, path, limit, out)
  if rc == C.RS_ERR_NOMEM then
    scope.collect()
    rc = C.rs_read_idx(ctx, path, limit, out)
  end
  check.status(rc)
  return scope.wrap(out[0])
end

local FASHION_PATH = "/usr/share/datasets/fashion-mnist"
local FASHION_CLASSES = {
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
}

-- The path of a file, plain or with .gz, or nil.
local function find(dir, name)
  for _, suffix in ipairs{"", ".gz"} do
    local path = dir .. "/" .. name .. suffix
    local file = io.open(path, "rb")
    if file then
      file:close()
      return path
    end
  end
end

local function to_labels(raw)
  return ops.add(raw:to("i64"), 1)
end

local function part(dir, prefix, limit)
  local paths = {}
  for i, name in ipairs{"images-idx3-ubyte", "labels-idx1-ubyte"} do
    name = prefix .. "-" .. name
    paths[i] = find(dir, name)
    if not paths[i] then
      check.fail("fashion_mnist: %s/%s(.gz) does not exist: install the Debian package dataset-fashion-mnist (make deps), "
        .. "or give the directory of the four files as {dir = …}", dir, name)
    end
  end
  local options = limit and {limit = limit} or nil
  local images, raw = idx.read(paths[1], options), idx.read(paths[2], options)
  if images.ndim ~= 3 or raw.ndim ~= 1 or images:size(1) ~= raw:size(1) then
    check.fail("fashion_mnist: %s holds %s and %s holds %s; expected [N, 28, 28] images and N labels", paths[1],
      check.describe(images), paths[2], check.describe(raw))
  end
  return {images = images, labels = scope.run(to_labels, raw)}
end

--- Fashion-MNIST: {train = {images, labels}, test = {images, labels}, classes}. Images are u8 [N, 28, 28], labels i64 from 1 to
--- 10, classes the ten names. Options: dir, where the files are; limit, the most training images to read; test_limit.
---@param options? string|{dir?: string, limit?: integer, test_limit?: integer}  a string is dir
---@return {train: table, test: table, classes: string[]}
function idx.fashion_mnist(options)
  if type(options) == "string" then options = {dir = options} end
  local o = check.options(options, {"dir", "limit", "test_limit"}, "fashion_mnist")
  local dir = o.dir == nil and FASHION_PATH or check.string(o.dir, "fashion_mnist: dir")
  local limit = o.limit ~= nil and check.integer(o.limit, "fashion_mnist: limit", 1) or nil
  local test_limit = o.test_limit ~= nil and check.integer(o.test_limit, "fashion_mnist: test_limit", 1) or nil
  return {
    train = part(dir, "train", limit),
    test = part(dir, "t10k", test_limit),
    classes = {unpack(FASHION_CLASSES)},
  }
end

return idx

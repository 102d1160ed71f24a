-- Saving and loading named tensors as safetensors files. A file holds data only: tensors, and a table of strings.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local serialize = {}

-- C would see the text only up to a NUL byte.
local function text_for_c(value, what)
  check.string(value, what)
  if value:find("\0", 1, true) then check.fail("%s %q has a NUL byte", what, value) end
  return value
end
serialize.text_for_c = text_for_c

-- {name = tensor} or {{name, tensor}, …} as two arrays.
local function entries(tensors)
  local names, values = {}, {}
  if #tensors > 0 then
    for i = 1, #tensors do
      local pair = check.table(tensors[i], "save: tensors[" .. i .. "]")
      if getmetatable(pair) == scope.Tensor then check.fail("save: give names: {name = tensor}") end
      names[i] = text_for_c(pair[1], "save: name of tensors[" .. i .. "]")
      values[i] = check.tensor(pair[2], "save: tensor " .. names[i])
    end
    return names, values
  end
  for name in pairs(tensors) do names[#names + 1] = text_for_c(name, "save: name") end
  table.sort(names)
  for i, name in ipairs(names) do values[i] = check.tensor(tensors[name], "save: tensor " .. name) end
  return names, values
end

---Writes named tensors. The file appears under `path` only when it is whole.
---@param path string
---@param tensors table {name = tensor}, written sorted by name, or {{name, tensor}, …} in that order; a module stands for its
---state_dict()
---@param meta? table<string, string|number|boolean>
function serialize.save(path, tensors, meta)
  text_for_c(path, "save: path")
  check.table(tensors, "save: tensors")
  local class = getmetatable(tensors)
  if type(class) == "table" and rawget(class, "module_class") == true then tensors = tensors:state_dict() end
  if getmetatable(tensors) == scope.Tensor then check.fail("save: give names: save(path, {name = tensor})") end
  local names, values = entries(tensors)
  local n = #names
  local keys, texts = {}, {}
  if meta ~= nil then
    for key in pairs(check.table(meta, "save: meta")) do keys[#keys + 1] = text_for_c(key, "save: meta key") end
    table.sort(keys)
    for i, key in ipairs(keys) do
      local value = meta[key]
      if type(value) ~= "string" and type(value) ~= "number" and type(value) ~= "boolean" then
        check.fail("save: meta %s must be a string, a number or a boolean, got %s", key, check.describe(value))
      end
      texts[i] = text_for_c(tostring(value), "save: meta " .. key)
    end
  end
  local c_names, c_tensors = ffi.new("const char *[?]", n + 1), ffi.new("rs_tensor *[?]", n + 1)
  for i = 1, n do c_names[i - 1], c_tensors[i - 1] = names[i], values[i].h end
  local c_keys, c_texts = ffi.new("const char *[?]", #keys + 1), ffi.new("const char *[?]", #keys + 1)
  for i = 1, #keys do c_keys[i - 1], c_texts[i - 1] = keys[i], texts[i] end
  check.status(C.rs_file_save(ctx, path, c_names, c_tensors, n, c_keys, c_texts, #keys))
end

---Reads a safetensors file.
---@param path string
---@param options? {metadata: boolean}  metadata = true: give the file's table of strings too
---@return table<string, resin.Tensor> tensors
---@return table<string, string>|nil meta
function serialize.load(path, options)
  text_for_c(path, "load: path")
  local with_meta = check.options(options, { "metadata" }, "load").metadata
  if with_meta ~= nil then check.boolean(with_meta, "load: metadata") end
  local out, t = ffi.new("rs_file *[1]"), ffi.new("rs_tensor *[1]")
  check.status(C.rs_file_open(ctx, path, out))
  local file = ffi.gc(out[0], C.rs_file_close)
  local tensors, meta = {}, {}
  for i = 0, C.rs_file_count(file) - 1 do
    check.status(C.rs_file_read(ctx, file, i, t))
    tensors[ffi.string(C.rs_file_name(file, i))] = scope.wrap(t[0])
  end
  for i = 0, C.rs_file_meta_count(file) - 1 do
    meta[ffi.string(C.rs_file_meta_key(file, i))] = ffi.string(C.rs_file_meta_value(file, i))
  end
  C.rs_file_close(ffi.gc(file, nil))
  if not with_meta then return tensors end
  return tensors, meta
end

return serialize

-- Element types: their names in Lua and their numbers in C.

local lib = require "resin.lib"
local check = require "resin.check"
local ffi, C = lib.ffi, lib.C

local dtype = {
  names = {},      -- code → "f32"
  codes = {},      -- name or alias → code
  pointer = {},    -- code → ctype of a typed pointer
}

local ctypes = { f32 = "float *", f64 = "double *", bf16 = "uint16_t *", f16 = "uint16_t *", i64 = "int64_t *", i32 = "int32_t *",
                 u8 = "uint8_t *", bool = "bool *" }
local aliases = { float32 = "f32", float = "f32", float64 = "f64", double = "f64", bfloat16 = "bf16", float16 = "f16", half = "f16",
                  int64 = "i64", long = "i64", int32 = "i32", int = "i32", uint8 = "u8", byte = "u8" }

for code = 0, C.RS_DTYPES - 1 do
  local name = ffi.string(C.rs_dtype_name(code))
  dtype.names[code] = name
  dtype.codes[name] = code
  dtype.pointer[code] = ffi.typeof(ctypes[name])
end
for alias, name in pairs(aliases) do dtype.codes[alias] = dtype.codes[name] end

---The number of an element type.
---@param name string
---@param what string for the message
---@return integer
function dtype.code(name, what)
  local code = dtype.codes[name]
  if code then return code end
  check.fail("%s must be a dtype (f32, f64, bf16, f16, i64, i32, u8, bool), got %s", what, check.describe(name))
end

return dtype

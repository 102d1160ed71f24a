-- Finds libresin, checks that it fits the generated declarations, and makes this Lua state's one context.
-- The environment is read here and nowhere else: RESIN_LIB (path of the library), RESIN_ISA, RESIN_BACKENDS, RESIN_THREADS.
-- `C` is kept in this table because LuaJIT unloads a library whose namespace is collected.

local ffi = require "ffi"
local abi = require "resin.cdef"

local here = debug.getinfo(1, "S").source:match("^@(.*)lib%.lua$") or "./"
local cdef_path = package.searchpath and package.searchpath("resin.cdef", package.path) or "resin/cdef.lua"

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

local function built_in()
  local ok, found = pcall(function() return ffi.C.rs_abi_version ~= nil end)
  return ok and found
end

-- Where the library may lie, in order. Returns a namespace and a name for messages.
local function find()
  local given = os.getenv("RESIN_LIB")
  if given and given ~= "" then
    if not exists(given) then error("resin: RESIN_LIB names " .. given .. ", which does not exist", 0) end
    return ffi.load(given:find("/", 1, true) and given or "./" .. given), given
  end
  if built_in() then return ffi.C, "the host program" end
  local build = cdef_path:match("^(.*)lua/resin/cdef%.lua$")
  local candidates = {
    package.searchpath("resin.native", package.cpath) or false,
    build and build .. "libresin.so" or false,      -- beside the generated files
    here .. "../../build/libresin.so",              -- a checkout
    here .. "../../../../lib/libresin.so",          -- installed: PREFIX/share/lua/5.1/resin and PREFIX/lib
  }
  for _, path in ipairs(candidates) do
    if path and exists(path) then return ffi.load(path), path end
  end
  local ok, C = pcall(ffi.load, "resin")
  if ok then return C, "libresin.so" end
  error("resin: cannot find libresin.so: build it with `make build`, or give its path in the environment as RESIN_LIB (" ..
    tostring(C) .. ")", 0)
end

local C, path = find()

local loaded = C.rs_abi_version()
if loaded ~= abi then
  error(("resin: %s has ABI %d, but %s was made for ABI %d: build both from one version"):format(path, loaded, cdef_path, abi), 0)
end

local function context()
  local options = ffi.new("rs_ctx_options")
  local threads = os.getenv("RESIN_THREADS")
  if threads and threads ~= "" then
    local n = tonumber(threads)
    if not n or n < 1 or n % 1 ~= 0 or n > 1024 then
      error("resin: RESIN_THREADS must be a positive integer, got " .. threads, 0)
    end
    options.threads = n
  end
  local isa = os.getenv("RESIN_ISA")
  if isa and isa ~= "" and isa ~= "best" then options.isa = isa end
  local out = ffi.new("rs_ctx *[1]")
  if C.rs_ctx_create(options, out) ~= 0 then error("resin: " .. ffi.string(C.rs_last_error()), 0) end
  local ctx = ffi.gc(out[0], C.rs_ctx_release)
  C.rs_set_index_base(ctx, 1)
  local backends = os.getenv("RESIN_BACKENDS")
  if backends and backends ~= "" and C.rs_set_backends(ctx, backends) ~= 0 then
    error("resin: RESIN_BACKENDS: " .. ffi.string(C.rs_last_error()), 0)
  end
  return ctx
end

local ctx = context()

return { ffi = ffi, C = C, ctx = ctx, stats = C.rs_ctx_stats(ctx), path = path }

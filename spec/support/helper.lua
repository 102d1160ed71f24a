-- Runs before any spec. Sets the paths (RESIN_BUILD: the build folder, "build" when not given) and loads resin once: busted
-- forgets modules between files, and a second copy would have a context of its own and refuse the first one's tensors.
local build = os.getenv("RESIN_BUILD") or "build"
package.path = "./lua/?.lua;./lua/?/init.lua;./?.lua;" .. build .. "/lua/?.lua;" .. package.path
local resin = require "resin"
-- They load when first used: do it here, once.
for _, part in ipairs { "nn", "optim", "data", "doctor", "blocks", "models" } do assert(resin[part]) end
-- Output is for failures; specs that are about warnings take them up again.
resin.set_warnings(false)

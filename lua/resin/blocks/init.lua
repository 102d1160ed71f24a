--- resin.blocks: small pieces from which networks are put together.
--   local blocks = resin.blocks
--   local block = blocks.ResidualAdd{
--     nn.Sequential(blocks.conv3x3_bn_act(64, 64, {padding = 1}), blocks.conv3x3_bn(64, 64, {padding = 1}))}

local structural = require "resin.nn.structural"

local blocks = {Lambda = structural.Lambda}

for _, part in ipairs{"conv", "branches", "residual", "se", "transfer"} do
  for name, value in pairs(require("resin.blocks." .. part)) do blocks[name] = value end
end

return blocks

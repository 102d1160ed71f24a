--- resin.models: whole networks, built from the same parts that users have.
--   local model = resin.models.resnet18{num_classes = 10, small_images = true}

local models = {}

for _, part in ipairs{"resnet", "small_resnet", "unet", "densenet", "mobilenet", "mlp", "recurrent", "transformer"} do
  for name, value in pairs(require("resin.models." .. part)) do models[name] = value end
end

return models

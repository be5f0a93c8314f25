-- Sets the record of the home that has a dataset open, unless the record has changed. See owner_linux.go.
--
-- Arguments: the dataset; the property; the record that is expected, empty for none; the new record.
--
-- It returns the record as it is then, or the reason why it could not be set.

local argv = (...)["argv"]
local dataset, property, expected, new = argv[1], argv[2], argv[3], argv[4]
local record, set_at = zfs.get_prop(dataset, property)
if not record or set_at ~= dataset then record = "" end
if record == expected then
	local errno = zfs.sync.set_prop(dataset, property, new)
	if errno ~= 0 then return {errno = errno} end
	record = new
end
return {errno = 0, record = record}

package cowcommon

// OrUnknown is a value of Backend.Status, or why it is not known.
func OrUnknown(value string, err error) string {
	if err != nil {
		return "unknown: " + err.Error()
	}
	return value
}

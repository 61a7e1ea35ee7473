package sumdb

// Step makes f see each step of a write as it is over.
func (d *Own) Step(f func(string)) { d.step = f }

def make_report(run, variant):
    print("report: todo")
